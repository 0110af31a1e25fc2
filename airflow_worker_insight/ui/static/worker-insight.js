/* Enhance the pages: show times in the time zone of Airflow's UI, refresh open pages, and keep empty form fields out of
   the URL. The pages also work without this script. */
(function () {
  "use strict";

  /* --- the login of Airflow 3.0 ------------------------------------------------------------------------------------ */

  /* Airflow 3.0's UI keeps its token in localStorage, and right after the login in a cookie that scripts can read. */
  function loginToken() {
    try {
      const stored = localStorage.getItem("token");
      if (stored) {
        return stored;
      }
    } catch {
      /* No storage. */
    }
    const cookie = document.cookie.split("; ").find((pair) => pair.startsWith("_token="));
    return cookie ? cookie.slice("_token=".length) : null;
  }

  let usesHeaderLogin = false;

  function fetchPage(url) {
    const headers = { Accept: "text/html" };
    if (usesHeaderLogin) {
      headers.Authorization = "Bearer " + loginToken();
    }
    return fetch(url, { headers: headers, credentials: "same-origin", cache: "no-store", redirect: "manual" });
  }

  async function signIn(shell) {
    if (!loginToken()) {
      location.replace(shell.dataset.wiLogin);
      return;
    }
    usesHeaderLogin = true;
    const response = await fetchPage(location.href);
    if (response.status === 401) {
      location.replace(shell.dataset.wiLogin);
      return;
    }
    showPage(await response.text());
  }

  function showPage(html) {
    const page = new DOMParser().parseFromString(html, "text/html");
    document.title = page.title;
    document.body.replaceChildren(...page.body.children);
    start();
  }

  /* --- times ------------------------------------------------------------------------------------------------------- */

  function timeZone() {
    try {
      if (window.Airflow && Airflow.defaultUITimezone) {
        /* Airflow 2.11 */
        return localStorage.getItem("selected-timezone") || Airflow.defaultUITimezone;
      }
      const stored = JSON.parse(localStorage.getItem("timezone"));
      return typeof stored === "string" && stored ? stored : "UTC";
    } catch {
      return "UTC";
    }
  }

  function timeFormat() {
    try {
      /* The Swedish locale formats as 2026-01-31 08:00:12. */
      return new Intl.DateTimeFormat("sv-SE", {
        timeZone: timeZone(),
        year: "numeric",
        month: "2-digit",
        day: "2-digit",
        hour: "2-digit",
        minute: "2-digit",
        second: "2-digit",
        timeZoneName: "short",
      });
    } catch {
      return null;
    }
  }

  function showTimes(root) {
    const formatter = timeFormat();
    if (!formatter) {
      return;
    }
    for (const element of root.querySelectorAll("[data-wi-zone]")) {
      element.textContent = timeZone().replaceAll("_", " ");
    }
    for (const field of root.querySelectorAll("[data-wi-utc]")) {
      field.defaultValue = field.dataset.wiUtc && fieldText(wallClock(Date.parse(field.dataset.wiUtc + "Z")));
      field.value = field.defaultValue;
    }
    for (const element of root.querySelectorAll("time[datetime]")) {
      const moment = new Date(element.dateTime);
      if (Number.isNaN(moment.getTime())) {
        continue;
      }
      const text = formatter.format(moment).replace(",", "");
      if ("wiAgo" in element.dataset) {
        element.title = text;
      } else if ("wiBare" in element.dataset) {
        element.textContent = text.slice(0, "2026-01-31 08:00:12".length);
        element.title = text;
      } else if ("wiHour" in element.dataset) {
        element.textContent = text.slice("2026-01-31 ".length, "2026-01-31 08".length);
        element.title = text;
      } else if ("wiShort" in element.dataset) {
        element.textContent = text.slice("2026-".length, "2026-01-31 08:00".length);
      } else {
        element.textContent = text;
        element.title = element.dateTime;
      }
    }
  }

  /* Returns the zone's wall-clock time at a point in time, as if it were UTC; both in milliseconds. */
  function wallClock(moment) {
    return Date.parse(timeFormat().format(moment).slice(0, "2026-01-31 08:00:12".length).replace(" ", "T") + "Z");
  }

  function fieldText(moment) {
    return new Date(moment).toISOString().slice(0, "2026-01-31T08:00".length);
  }

  /* Returns a field's value in UTC. The second step corrects for a clock change in between. */
  function utcText(text) {
    const shown = Date.parse(text + "Z");
    const near = shown - (wallClock(shown) - shown);
    return fieldText(shown - (wallClock(near) - near));
  }

  /* --- refreshing -------------------------------------------------------------------------------------------------- */

  let timer = null;
  let updatedAt = new Date();
  let failures = 0;
  let staleNotice = null;

  /* Returns the element that holds the refresh interval; a refresh replaces it or parts of it. */
  function refreshRoot() {
    return document.querySelector("[data-wi-refresh]");
  }

  function scheduleRefresh() {
    clearTimeout(timer);
    const seconds = Number(refreshRoot() && refreshRoot().dataset.wiRefresh);
    if (seconds > 0 && !document.hidden) {
      timer = setTimeout(refresh, seconds * 1000);
    }
  }

  async function refresh() {
    let succeeded = false;
    let isFinal = false;
    try {
      const response = await fetchPage(location.pathname.replace(/\/$/, "") + "/fragment" + location.search);
      if (response.status === 401) {
        /* Logged out: a reload leads to the login. */
        location.reload();
        return;
      }
      /* Stop: another request cannot undo a denied permission or a deletion. */
      isFinal = response.status === 403 || response.status === 404;
      succeeded = response.ok && applyUpdate(await response.text());
    } catch {
      /* The server is unavailable for a moment: keep the content, the next refresh may succeed. */
    }
    failures = succeeded ? 0 : failures + 1;
    updatedAt = succeeded ? new Date() : updatedAt;
    if (isFinal) {
      refreshRoot().dataset.wiRefresh = "0";
    }
    if (staleNotice) {
      staleNotice.textContent = isFinal || failures > 1 ? "Not updated since " + clock(updatedAt) : "";
    }
    scheduleRefresh();
  }

  function clock(moment) {
    const formatter = timeFormat();
    return formatter ? formatter.format(moment).replace(",", "").slice("2026-01-31 ".length) : moment.toISOString();
  }

  /* Adds the empty "not updated" message: screen readers announce changes of existing elements only. */
  function addStaleNotice() {
    if (refreshRoot()) {
      staleNotice = document.createElement("p");
      staleNotice.className = "wi-stale";
      staleNotice.setAttribute("role", "status");
      refreshRoot().after(staleNotice);
    }
  }

  /* Replaces the changed parts; returns whether the response is this page. */
  function applyUpdate(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    const source = fresh.querySelector("[data-wi-refresh]");
    if (!source || !refreshRoot() || source.id !== refreshRoot().id) {
      return false;
    }
    const live = [...fresh.querySelectorAll("[data-wi-live]")];
    const gone = [...document.querySelectorAll("[data-wi-live]")].some((old) => !fresh.getElementById(old.id));
    const added = live.some((part) => !document.getElementById(part.id));
    if ((gone || added) && !isBeingEdited(refreshRoot())) {
      /* A part was added or removed, such as the lost tries of a worker. */
      replacePart(refreshRoot(), source);
      return true;
    }
    for (const part of live) {
      const old = document.getElementById(part.id);
      if (old && !isBeingEdited(old)) {
        replacePart(old, part);
      }
    }
    refreshRoot().dataset.wiRefresh = source.dataset.wiRefresh;
    return true;
  }

  function replacePart(old, part) {
    showTimes(part);
    if (part.outerHTML === old.outerHTML) {
      return;
    }
    const scrolled = [...old.querySelectorAll(".wi-scroll")].map((element) => element.scrollLeft);
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const index = focused ? linksTo(old, focused).indexOf(focused) : -1;
    old.replaceWith(part);
    [...part.querySelectorAll(".wi-scroll")].forEach((element, at) => (element.scrollLeft = scrolled[at] || 0));
    /* Rows move: the focus follows the link's target, and does not jump to another row if that one is gone. */
    const same = focused ? linksTo(part, focused)[index] : null;
    if (same) {
      same.focus({ preventScroll: true });
    }
  }

  function linksTo(part, link) {
    return [...part.querySelectorAll("a[href]")].filter(
      (other) => other.getAttribute("href") === link.getAttribute("href"),
    );
  }

  function isBeingEdited(part) {
    if (part.querySelector("details[open]")) {
      return true;
    }
    return [...part.querySelectorAll("input, select")].some(
      (field) =>
        field === document.activeElement ||
        (field.type === "radio" ? field.checked !== field.defaultChecked : false) ||
        (field.type !== "radio" && field.tagName === "INPUT" && field.value !== field.defaultValue),
    );
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      clearTimeout(timer);
    } else if (Number(refreshRoot() && refreshRoot().dataset.wiRefresh) > 0) {
      refresh();
    }
  });

  /* --- forms ------------------------------------------------------------------------------------------------------- */

  /* Keep empty fields out of the URL and submit when a choice changes. */
  function enhanceForm(form) {
    form.addEventListener("submit", () => {
      for (const field of form.elements) {
        field.disabled = field.name !== "" && field.value === "";
      }
      const moments = timeFormat() ? [...form.querySelectorAll("[data-wi-utc]")].filter((field) => field.value) : [];
      const shown = moments.map((field) => field.value);
      moments.forEach((field) => (field.value = utcText(field.value)));
      /* Restore the fields: the browser may show this page again as it was left. */
      setTimeout(() => {
        [...form.elements].forEach((field) => (field.disabled = false));
        moments.forEach((field, index) => (field.value = shown[index]));
      });
    });
    for (const field of form.querySelectorAll("select")) {
      field.addEventListener("change", () => form.requestSubmit());
    }
  }

  /* Where no cookie holds the login (Airflow 3.0), send a form with the token, like page requests. */
  async function sendWithToken(event) {
    const form = event.target;
    if (!usesHeaderLogin || form.method !== "post") {
      return;
    }
    event.preventDefault();
    const response = await fetch(form.action, {
      method: "POST",
      headers: { Authorization: "Bearer " + loginToken() },
      body: new URLSearchParams(new FormData(form)),
      credentials: "same-origin",
      redirect: "manual",
    });
    if (response.type === "opaqueredirect") {
      location.reload();
    } else {
      showPage(await response.text());
    }
  }

  document.addEventListener("submit", sendWithToken);

  addEventListener("storage", (event) => {
    if (event.key === "timezone") {
      showTimes(document);
    }
  });

  /* Airflow 2.11: its own menu, which sets the time zone, is on the same page. */
  document.addEventListener("timezone", () => showTimes(document));

  /* --- start ------------------------------------------------------------------------------------------------------- */

  function start() {
    showTimes(document);
    document.querySelectorAll("[data-wi-form]").forEach(enhanceForm);
    for (const back of document.querySelectorAll("[data-wi-back]")) {
      if (history.length > 1 && document.referrer.startsWith(location.origin)) {
        back.hidden = false;
        back.addEventListener("click", (event) => {
          event.preventDefault();
          history.back();
        });
      }
    }
    /* The latest hour is the last column. */
    document.querySelectorAll("[data-wi-latest]").forEach((element) => (element.scrollLeft = element.scrollWidth));
    addStaleNotice();
    scheduleRefresh();
  }

  const shell = document.getElementById("wi-sign-in");
  if (shell) {
    signIn(shell);
  } else {
    start();
  }
})();
