// Before the page is painted: light or dark, as chosen here or at the desk (one choice, kept by the browser).
(function () {
  function chosen() {
    try { return JSON.parse(localStorage.getItem("adminTheme")) || "auto"; } catch (e) { return "auto"; }
  }
  var system = window.matchMedia("(prefers-color-scheme: dark)");
  function apply() {
    var theme = chosen();
    document.documentElement.classList.toggle("dark", theme === "dark" || (theme === "auto" && system.matches));
  }
  window.orderlyTheme = function (theme) {
    try { localStorage.setItem("adminTheme", JSON.stringify(theme)); } catch (e) { /* private window */ }
    apply();
  };
  system.addEventListener("change", apply);
  apply();
})();
