// The analyst's pages: which name belongs to which text, choosing rows, dropping files. All work without, slower.
(function () {
  "use strict";

  // -- a field's name and its text in the raw message light up together
  function light(target, on) {
    var of = target.closest && target.closest("[data-field]");
    if (!of) { return; }
    document.querySelectorAll('[data-field="' + of.dataset.field + '"]').forEach(function (one) {
      one.classList.toggle("a-lit", on);
    });
  }
  document.addEventListener("mouseover", function (event) { light(event.target, true); });
  document.addEventListener("mouseout", function (event) { light(event.target, false); });
  document.addEventListener("click", function (event) {
    var of = event.target.closest("i[data-field]");
    if (!of) { return; }
    var row = document.querySelector('tr[data-field="' + of.dataset.field + '"]');
    if (row) {
      var segment = row.closest("details");
      if (segment) { segment.open = true; }
      row.scrollIntoView({ block: "center" });
    }
  });

  // -- choosing messages
  function chosen() {
    var boxes = document.querySelectorAll("input[name='id'][type='checkbox']");
    var count = Array.from(boxes).filter(function (b) { return b.checked; }).length;
    document.querySelectorAll("[data-needs-choice]").forEach(function (b) { b.disabled = !count; });
    document.querySelectorAll("[data-chosen]").forEach(function (s) { s.textContent = count ? count + " chosen" : ""; });
  }
  document.addEventListener("change", function (event) {
    if (event.target.matches("[data-all]")) {
      document.querySelectorAll("input[name='id'][type='checkbox']").forEach(function (b) {
        b.checked = event.target.checked;
      });
    }
    if (event.target.matches("[data-all], input[name='id']")) { chosen(); }
    if (event.target.matches("[data-drop] input")) {
      var names = Array.from(event.target.files).map(function (f) { return f.name; });
      var said = event.target.closest("[data-drop]").querySelector("[data-files]");
      if (names.length) { said.textContent = names.length > 3 ? names.length + " files" : names.join(", "); }
    }
  });
  document.addEventListener("keydown", function (event) {  // x chooses the row that j and k walk to, r replays
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=checkbox]), textarea, select")) { return; }
    if (event.key === "x") {
      var box = document.querySelector("tr[data-href][aria-selected='true'] input[name='id']");
      if (box) { box.checked = !box.checked; chosen(); }
    }
    if (event.key === "r") {
      var replay = document.querySelector("[data-needs-choice]:not([disabled])");
      if (replay) { replay.click(); }
    }
  });
  document.addEventListener("DOMContentLoaded", chosen);

  // -- dropping (the desk's own script would look for a text field beside the input: it is told that it has been here)
  document.querySelectorAll("[data-drop] input").forEach(function (input) { input.hasChangeListener = true; });
  ["dragover", "dragleave", "drop"].forEach(function (name) {
    document.addEventListener(name, function (event) {
      var zone = event.target.closest && event.target.closest("[data-drop]");
      if (zone) { zone.classList.toggle("a-over", name === "dragover"); }
    });
  });
})();
