// Small helpers of every page: rows by keyboard, the clock, dialogs, menus. Everything works without them, slower.
(function () {
  "use strict";

  function typing(target) {
    return target.closest("input, textarea, select, [contenteditable]") !== null;
  }

  // -- rows: j/k or arrows choose, Enter opens, a click anywhere on the row opens
  function rows() { return Array.from(document.querySelectorAll("tr[data-href]")); }
  function choose(step) {
    var all = rows();
    if (!all.length) { return; }
    var at = all.findIndex(function (r) { return r.getAttribute("aria-selected") === "true"; });
    var next = Math.max(0, Math.min(all.length - 1, at < 0 ? (step > 0 ? 0 : all.length - 1) : at + step));
    all.forEach(function (r, i) { r.setAttribute("aria-selected", String(i === next)); });
    all[next].scrollIntoView({ block: "nearest" });
  }
  document.addEventListener("click", function (event) {
    var row = event.target.closest("tr[data-href]");
    if (row && !event.target.closest("a, button, input, label, summary") && !String(window.getSelection())) {
      window.location.assign(row.dataset.href);
    }
  });

  document.addEventListener("keydown", function (event) {
    var save = document.querySelector("[data-save]");
    var sign = document.querySelector("[data-open-dialog='sign']");
    if ((event.ctrlKey || event.metaKey) && event.key === "s" && save) {
      event.preventDefault();
      window.htmx.trigger(save, "orderly:save");
      return;
    }
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter" && sign) {
      event.preventDefault();
      sign.click();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) { return; }
    if (event.key === "/") {
      var search = document.querySelector("[data-search]");
      if (search) { event.preventDefault(); search.focus(); search.select(); }
    } else if (event.key === "j" || (event.key === "ArrowDown" && rows().length)) {
      event.preventDefault(); choose(1);
    } else if (event.key === "k" || (event.key === "ArrowUp" && rows().length)) {
      event.preventDefault(); choose(-1);
    } else if (event.key === "Enter" && event.target === document.body) {
      var row = document.querySelector("tr[data-href][aria-selected='true']");
      if (row) { window.location.assign(row.dataset.href); }
    }
  });

  // -- dialogs
  document.addEventListener("click", function (event) {
    var opener = event.target.closest("[data-open-dialog]");
    if (opener) {
      var dialog = document.getElementById(opener.dataset.openDialog);
      if (dialog && !opener.disabled) { dialog.showModal(); }
    }
    var closer = event.target.closest("[data-close-dialog]");
    if (closer) { closer.closest("dialog").close(); }
    // a draft that somebody else saved meanwhile: keep the text of this page, on top of theirs
    var keep = event.target.closest("[data-keep-mine]");
    if (keep) {
      document.getElementById("draft_version").value = keep.dataset.keepMine;
      window.htmx.trigger(keep.closest("[data-save]"), "orderly:save");
    }
    if (event.target.closest("[data-print]")) { window.print(); }
    var theme = event.target.closest("[data-theme]");
    if (theme && window.orderlyTheme) { window.orderlyTheme(theme.dataset.theme); }
    document.querySelectorAll("details.o-menu[open]").forEach(function (menu) {
      if (!menu.contains(event.target)) { menu.open = false; }
    });
  });

  // -- the clock, in the site's zone
  function tick() {
    document.querySelectorAll("[data-clock]").forEach(function (clock) {
      clock.textContent = new Intl.DateTimeFormat("en-GB", {
        weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit",
        timeZone: clock.dataset.clock,
      }).format(new Date());
    });
  }
  document.addEventListener("DOMContentLoaded", function () {
    tick();
    setInterval(tick, 10000);
    document.body.addEventListener("htmx:sendError", function () { offline(true); });
    document.body.addEventListener("htmx:afterOnLoad", function () { offline(false); });
  });

  // -- saving: say so when the server cannot be reached, and keep a signature from leaving unsaved text behind
  function offline(yes) {
    document.querySelectorAll("[data-offline]").forEach(function (note) { note.hidden = !yes; });
  }
  document.addEventListener("input", function (event) {
    if (event.target.closest("[data-save]")) {
      var said = document.getElementById("saved");
      if (said) { said.textContent = "Not saved yet"; }
    }
  });
})();
