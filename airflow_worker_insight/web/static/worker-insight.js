/* What the pages do beyond being read: times in the zone that Airflow's UI shows, and a panel that keeps up with its
   task. Everything works without it. */
(function () {
  "use strict";

  /* --- the login of Airflow 3.0 ------------------------------------------------------------------------------------ */

  /* Airflow 3.0's UI keeps its token here, and right after the login in a cookie that scripts can read. */
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
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
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

  function showTimes(root) {
    let format;
    try {
      format = new Intl.DateTimeFormat("sv-SE", {
        timeZone: zone(), year: "numeric", month: "2-digit", day: "2-digit",
        hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short",
      });
    } catch {
      return;
    }
    for (const element of root.querySelectorAll("time[datetime]")) {
      const moment = new Date(element.dateTime);
      if (!Number.isNaN(moment.getTime())) {
        element.textContent = format.format(moment).replace(",", "");
        element.title = element.dateTime;
      }
    }
  }

  /* --- keeping up -------------------------------------------------------------------------------------------------- */

  let timer = null;

  function plan() {
    clearTimeout(timer);
    const panel = document.getElementById("wi-panel");
    const seconds = Number(panel && panel.dataset.wiRefresh);
    if (seconds > 0 && !document.hidden) {
      timer = setTimeout(refresh, seconds * 1000);
    }
  }

  async function refresh() {
    try {
      const answer = await request(location.pathname.replace(/\/panel$/, "/panel/fragment") + location.search);
      if (answer.ok) {
        replace(await answer.text());
      } else if (answer.status === 401) {
        /* Logged out: the page itself knows the way to the login. */
        location.reload();
        return;
      }
    } catch {
      /* The server is away for a moment: what is shown stays, and the next time may work. */
    }
    plan();
  }

  function replace(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html").getElementById("wi-panel");
    const old = document.getElementById("wi-panel");
    if (!fresh || !old) {
      return;
    }
    showTimes(fresh);
    if (fresh.outerHTML === old.outerHTML) {
      return;
    }
    const focused = old.contains(document.activeElement) ? [...old.querySelectorAll("a")].indexOf(document.activeElement) : -1;
    old.replaceWith(fresh);
    if (focused >= 0) {
      const links = fresh.querySelectorAll("a");
      if (links[focused]) {
        links[focused].focus({ preventScroll: true });
      }
    }
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      clearTimeout(timer);
    } else if (document.querySelector("#wi-panel[data-wi-refresh]:not([data-wi-refresh='0'])")) {
      refresh();
    }
  });

  addEventListener("storage", (event) => {
    if (event.key === "timezone") {
      showTimes(document);
    }
  });

  /* Airflow 2.11, where its own menu is on the same page. */
  document.addEventListener("timezone", () => showTimes(document));

  /* --- start ------------------------------------------------------------------------------------------------------- */

  function start() {
    showTimes(document);
    for (const back of document.querySelectorAll("[data-wi-back]")) {
      if (history.length > 1 && document.referrer.startsWith(location.origin)) {
        back.hidden = false;
        back.addEventListener("click", (event) => {
          event.preventDefault();
          history.back();
        });
      }
    }
    plan();
  }

  const shell = document.getElementById("wi-sign-in");
  if (shell) {
    signIn(shell);
  } else {
    start();
  }
})();
