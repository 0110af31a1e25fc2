/* Apply the colour mode of Airflow 3's UI before the first paint: localStorage holds "light", "dark" or "system" as
   "theme". Airflow 2.11 inverts the whole page by itself, including these pages. */
(function () {
  "use strict";
  const root = document.documentElement;

  function apply() {
    let theme = null;
    try {
      theme = localStorage.getItem("theme");
    } catch {
      /* No storage: the style sheet follows the operating system. */
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
    /* Opened from another of these pages inside the tab: Airflow's surrounding page shows another task. */
    if (/\/worker-?insight\//.test(document.referrer)) {
      root.classList.add("wi-followed");
    }
  }
})();
