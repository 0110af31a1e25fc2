/* Follow the colour mode of Airflow 3's UI before anything is painted: localStorage has "light", "dark" or "system" as
   "theme". Airflow 2.11 inverts the whole page by itself, this part of it too. */
(function () {
  "use strict";
  const root = document.documentElement;

  function apply() {
    let theme = null;
    try {
      theme = localStorage.getItem("theme");
    } catch {
      /* No storage: the operating system's choice, as the style sheet has it. */
    }
    if (theme === "dark" || theme === "light") {
      root.dataset.wiTheme = theme;
    } else {
      delete root.dataset.wiTheme;
    }
  }

  apply();
  addEventListener("storage", (event) => {
    if (event.key === null || event.key === "theme") {
      apply();
    }
  });
  if (window.self !== window.top) {
    root.classList.add("wi-framed");
    /* Followed from another of these pages inside the tab: what Airflow's page around it says is of another task. */
    if (/\/worker-?insight\//.test(document.referrer)) {
      root.classList.add("wi-followed");
    }
  }
})();
