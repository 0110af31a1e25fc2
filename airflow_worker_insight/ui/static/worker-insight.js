/* Enhance the pages: show times in the time zone of Airflow's UI, refresh open pages, and keep empty form fields out of
   the URL. The pages also work without this script. */
(function () {
  "use strict";

  /* --- the login of Airflow 3.0 ------------------------------------------------------------------------------------ */

  /* Airflow 3.0's UI keeps its token in localStorage, and right after the login in a cookie that scripts can read. */
  function token() {
    try {
      const kept = localStorage.getItem("token");
      if (kept) {
        return kept;
      }
    } catch {
      /* No storage. */
    }
    const cookie = document.cookie.split("; ").find((pair) => pair.startsWith("_token="));
    return cookie ? cookie.slice("_token=".length) : null;
  }

  let signedInHere = false;

  function request(address) {
    const headers = { Accept: "text/html" };
    if (signedInHere) {
      headers.Authorization = "Bearer " + token();
    }
    return fetch(address, { headers: headers, credentials: "same-origin", cache: "no-store", redirect: "manual" });
  }

  async function signIn(shell) {
    if (!token()) {
      location.replace(shell.dataset.wiLogin);
      return;
    }
    signedInHere = true;
    const answer = await request(location.href);
    if (answer.status === 401) {
      location.replace(shell.dataset.wiLogin);
      return;
    }
    show(await answer.text());
  }

  function show(html) {
    const page = new DOMParser().parseFromString(html, "text/html");
    document.title = page.title;
    document.body.replaceChildren(...page.body.children);
    start();
  }

  /* --- times ------------------------------------------------------------------------------------------------------- */

  function zone() {
    try {
      if (window.Airflow && Airflow.defaultUITimezone) {
        /* Airflow 2.11 */
        return localStorage.getItem("selected-timezone") || Airflow.defaultUITimezone;
      }
      const kept = JSON.parse(localStorage.getItem("timezone"));
      return typeof kept === "string" && kept ? kept : "UTC";
    } catch {
      return "UTC";
    }
  }

  function format() {
    try {
      /* The Swedish locale formats as 2026-01-31 08:00:12. */
      return new Intl.DateTimeFormat("sv-SE", {
        timeZone: zone(),
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
    const written = format();
    if (!written) {
      return;
    }
    for (const element of root.querySelectorAll("[data-wi-zone]")) {
      element.textContent = zone().replaceAll("_", " ");
    }
    for (const field of root.querySelectorAll("[data-wi-utc]")) {
      field.defaultValue = field.dataset.wiUtc && fieldText(wall(Date.parse(field.dataset.wiUtc + "Z")));
      field.value = field.defaultValue;
    }
    for (const element of root.querySelectorAll("time[datetime]")) {
      const moment = new Date(element.dateTime);
      if (Number.isNaN(moment.getTime())) {
        continue;
      }
      const text = written.format(moment).replace(",", "");
      if ("wiAgo" in element.dataset) {
        element.title = text;
      } else if ("wiBare" in element.dataset) {
        element.textContent = text.slice(0, "2026-01-31 08:00:12".length);
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
  function wall(moment) {
    return Date.parse(format().format(moment).slice(0, "2026-01-31 08:00:12".length).replace(" ", "T") + "Z");
  }

  function fieldText(moment) {
    return new Date(moment).toISOString().slice(0, "2026-01-31T08:00".length);
  }

  /* Returns a field's value in UTC. The second step corrects for a clock change in between. */
  function utcText(text) {
    const shown = Date.parse(text + "Z");
    const near = shown - (wall(shown) - shown);
    return fieldText(shown - (wall(near) - near));
  }

  /* --- refreshing -------------------------------------------------------------------------------------------------- */

  let timer = null;
  let updatedAt = new Date();
  let failures = 0;
  let stale = null;

  /* Returns the element that holds the refresh interval; a refresh replaces it or parts of it. */
  function page() {
    return document.querySelector("[data-wi-refresh]");
  }

  function plan() {
    clearTimeout(timer);
    const seconds = Number(page() && page().dataset.wiRefresh);
    if (seconds > 0 && !document.hidden) {
      timer = setTimeout(refresh, seconds * 1000);
    }
  }

  async function refresh() {
    let works = false;
    let isOver = false;
    try {
      const answer = await request(location.pathname.replace(/\/$/, "") + "/fragment" + location.search);
      if (answer.status === 401) {
        /* Logged out: a reload leads to the login. */
        location.reload();
        return;
      }
      /* Stop: another request cannot undo a denied permission or a deletion. */
      isOver = answer.status === 403 || answer.status === 404;
      works = answer.ok && replace(await answer.text());
    } catch {
      /* The server is unavailable for a moment: keep the content, the next refresh may succeed. */
    }
    failures = works ? 0 : failures + 1;
    updatedAt = works ? new Date() : updatedAt;
    if (isOver) {
      page().dataset.wiRefresh = "0";
    }
    if (stale) {
      stale.textContent = isOver || failures > 1 ? "Not updated since " + clock(updatedAt) : "";
    }
    plan();
  }

  function clock(moment) {
    const written = format();
    return written ? written.format(moment).replace(",", "").slice("2026-01-31 ".length) : moment.toISOString();
  }

  /* Adds the "out of date" message, empty at first: screen readers announce changes of existing elements. */
  function addStale() {
    if (page()) {
      stale = document.createElement("p");
      stale.className = "wi-stale";
      stale.setAttribute("role", "status");
      page().after(stale);
    }
  }

  /* Replaces the changed parts; returns whether the response is this page. */
  function replace(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    const source = fresh.querySelector("[data-wi-refresh]");
    if (!source || !page() || source.id !== page().id) {
      return false;
    }
    const live = [...fresh.querySelectorAll("[data-wi-live]")];
    const gone = [...document.querySelectorAll("[data-wi-live]")].some((old) => !fresh.getElementById(old.id));
    const added = live.some((part) => !document.getElementById(part.id));
    if ((gone || added) && !isBeingEdited(page())) {
      /* A part was added or removed, such as the list of tries that a lost worker took with it. */
      swap(page(), source);
      return true;
    }
    for (const part of live) {
      const old = document.getElementById(part.id);
      if (old && !isBeingEdited(old)) {
        swap(old, part);
      }
    }
    page().dataset.wiRefresh = source.dataset.wiRefresh;
    return true;
  }

  function swap(old, part) {
    showTimes(part);
    if (part.outerHTML === old.outerHTML) {
      return;
    }
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const place = focused ? alike(old, focused).indexOf(focused) : -1;
    old.replaceWith(part);
    /* Rows move: the focus follows the link's target, and does not jump to another row if that one is gone. */
    const same = focused ? alike(part, focused)[place] : null;
    if (same) {
      same.focus({ preventScroll: true });
    }
  }

  function alike(part, link) {
    return [...part.querySelectorAll("a[href]")].filter(
      (one) => one.getAttribute("href") === link.getAttribute("href"),
    );
  }

  function isBeingEdited(part) {
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
    } else if (Number(page() && page().dataset.wiRefresh) > 0) {
      refresh();
    }
  });

  /* --- forms ------------------------------------------------------------------------------------------------------- */

  /* Keep empty fields out of the URL; submit as soon as a choice changes. */
  function improve(form) {
    form.addEventListener("submit", () => {
      for (const field of form.elements) {
        field.disabled = field.name !== "" && field.value === "";
      }
      const moments = format() ? [...form.querySelectorAll("[data-wi-utc]")].filter((field) => field.value) : [];
      const shown = moments.map((field) => field.value);
      moments.forEach((field) => (field.value = utcText(field.value)));
      /* Restore the fields: the browser may show this page again as it was left. */
      setTimeout(() => {
        [...form.elements].forEach((field) => (field.disabled = false));
        moments.forEach((field, place) => (field.value = shown[place]));
      });
    });
    for (const field of form.querySelectorAll("select")) {
      field.addEventListener("change", () => form.requestSubmit());
    }
  }

  /* Where no cookie holds the login (Airflow 3.0), send a form with the token, as page requests are. */
  async function send(event) {
    const form = event.target;
    if (!signedInHere || form.method !== "post") {
      return;
    }
    event.preventDefault();
    const answer = await fetch(form.action, {
      method: "POST",
      headers: { Authorization: "Bearer " + token() },
      body: new URLSearchParams(new FormData(form)),
      credentials: "same-origin",
      redirect: "manual",
    });
    if (answer.type === "opaqueredirect") {
      location.reload();
    } else {
      show(await answer.text());
    }
  }

  document.addEventListener("submit", send);

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
    document.querySelectorAll("[data-wi-form]").forEach(improve);
    for (const back of document.querySelectorAll("[data-wi-back]")) {
      if (history.length > 1 && document.referrer.startsWith(location.origin)) {
        back.hidden = false;
        back.addEventListener("click", (event) => {
          event.preventDefault();
          history.back();
        });
      }
    }
    addStale();
    plan();
  }

  const shell = document.getElementById("wi-sign-in");
  if (shell) {
    signIn(shell);
  } else {
    start();
  }
})();
