/* Follow the colour mode of Airflow's UI before anything is painted: it keeps it in localStorage (Airflow 3: "theme" is
   "light", "dark" or "system"; Airflow 2: "darkTheme" is "true" or "false"). */
(function () {
  "use strict";
  const root = document.documentElement;

  function apply() {
    let theme = null;
    try {
      theme = localStorage.getItem("theme");
      if (theme === null && localStorage.getItem("darkTheme") !== null) {
        theme = localStorage.getItem("darkTheme") === "true" ? "dark" : "light";
      }
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
    if (event.key === null || event.key === "theme" || event.key === "darkTheme") {
      apply();
    }
  });
  if (window.self !== window.top) {
    root.classList.add("wi-framed");
  }
})();
