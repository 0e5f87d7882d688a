// The simple viewer: pictures made by the server (`rendered`), drawn on a canvas, fetched ahead in scrolling direction.
(function () {
  "use strict";

  const AHEAD = 8;             // pictures fetched ahead of the one shown
  const KEPT = 400;            // decoded pictures kept
  const AT_ONCE = 4;           // fetches under way
  const FRAME_MS = 90;         // pace of playing

  const PRESETS = {
    CT: [["Brain", 40, 80], ["Subdural", 75, 215], ["Bone", 600, 2800], ["Soft tissue", 50, 400],
         ["Lung", -600, 1500], ["Mediastinum", 50, 350], ["Liver", 60, 160]],
  };

  class Pictures {
    // Decoded pictures by address; a fetch that nobody waits for any more is aborted.
    constructor() { this.kept = new Map(); this.queue = []; this.running = new Map(); }

    get(url) {
      const found = this.kept.get(url);
      if (found) { this.kept.delete(url); this.kept.set(url, found); }
      return found;
    }

    want(urls, arrived) {
      // The first address is the one to be shown, the others are guesses.
      this.arrived = arrived;
      this.queue = urls.filter((url) => !this.kept.has(url) && !this.running.has(url));
      for (const [url, abort] of this.running) if (!urls.includes(url)) abort.abort();
      this.fill();
    }

    fill() {
      while (this.running.size < AT_ONCE && this.queue.length) this.load(this.queue.shift());
    }

    async load(url) {
      const abort = new AbortController();
      this.running.set(url, abort);
      let picture = null;
      try {
        const response = await fetch(url, { signal: abort.signal, credentials: "same-origin" });
        if (response.ok) {
          const bitmap = await createImageBitmap(await response.blob());
          const told = response.headers.get("Orderly-Window");
          picture = { bitmap, window: told ? told.split(",").map(Number) : null };
        } else {
          picture = { error: await reason(response) };
        }
      } catch (error) {
        if (error.name !== "AbortError") picture = { error: "The server cannot be reached." };
      }
      this.running.delete(url);
      if (picture) {
        // A failure may pass: it is told, and tried again when one comes back to it.
        if (!picture.error) this.kept.set(url, picture);
        for (const old of this.kept.keys()) {
          if (this.kept.size <= KEPT) break;
          this.kept.get(old).bitmap.close();
          this.kept.delete(old);
        }
        if (this.arrived) this.arrived(url, picture);
      }
      this.fill();
    }
  }

  async function reason(response) {
    if (response.status === 401 || response.status === 403) return "You are logged out, or may not see this study.";
    if (response.status === 503) return "The server is busy; try again in a moment.";
    try { return "No picture: " + ((await response.json()).detail || response.status); } catch (e) { return "No picture."; }
  }

  class Viewer {
    constructor(root) {
      this.root = root;
      this.part = {};
      root.querySelectorAll("[data-v]").forEach((node) => { this.part[node.dataset.v] = node; });
      this.pictures = new Pictures();
      this.series = [];
      this.at = 0;              // index of the series
      this.image = 0;           // index of the picture within it
      this.direction = 1;
      this.window = null;       // asked for; null: the image's own
      this.shown = null;        // the picture on the canvas
      this.view = { zoom: 1, x: 0, y: 0 };
      this.inverted = false;
      this.listen();
      this.open();
    }

    async open() {
      let response;
      try {
        response = await fetch(this.root.dataset.contents, { credentials: "same-origin" });
      } catch (e) { this.say("The server cannot be reached."); return; }
      if (!response.ok) { this.say("You may not see this study, or it is gone."); return; }
      this.study = await response.json();
      this.series = this.study.series.map((one) => ({ ...one, pictures: expand(one) }));
      this.part.tr.textContent = [this.study.patient, this.study.patient_id,
        this.study.born && "born " + this.study.born].filter(Boolean).join("\n");
      this.list();
      if (!this.series.length) { this.say("No images have come yet."); return; }
      const first = this.series.findIndex((one) => one.kind === "image");
      this.choose(Math.max(0, first));
    }

    list() {
      this.part.series.replaceChildren(...this.series.map((one, at) => {
        const item = document.createElement("li");
        const button = document.createElement("button");
        button.type = "button";
        button.addEventListener("click", () => this.choose(at));
        let mark;
        if (one.kind === "image") {
          mark = document.createElement("img");
          mark.loading = "lazy";
          mark.alt = "";
          mark.src = one.thumbnail;
        } else {
          mark = document.createElement("span");
          mark.className = "v-blank";
          mark.textContent = one.modality || one.kind;
        }
        const name = document.createElement("b");
        name.textContent = one.description || one.modality || "Series";
        const count = document.createElement("span");
        const unit = one.kind === "image" ? "image" : "object";
        count.textContent = `${one.modality} · ${one.pictures.length} ${unit}${one.pictures.length === 1 ? "" : "s"}`;
        button.title = name.textContent;
        button.append(mark, name, count);
        item.append(button);
        return item;
      }));
    }

    choose(at) {
      if (at < 0 || at >= this.series.length) return;
      this.stop();
      this.at = at;
      const one = this.series[at];
      this.window = null;
      this.view = { zoom: 1, x: 0, y: 0 };
      this.part.series.querySelectorAll("button").forEach((button, n) => {
        button.setAttribute("aria-current", n === at ? "true" : "false");
        if (n === at) button.scrollIntoView({ block: "nearest", inline: "nearest" });
      });
      this.part.tl.textContent = [this.study.description, this.study.date,
        [one.number, one.description].filter((word) => word || word === 0).join(" · ")].filter(Boolean).join("\n");
      this.offer(one);
      const many = one.pictures.length > 1 && one.kind === "image";
      this.part.slider.hidden = !many;
      this.part.slider.max = one.pictures.length;
      this.part.play.disabled = !many;
      this.embed(one);
      this.image = -1;
      // A cine begins at its beginning, a volume in its middle.
      this.go(one.images.length === 1 ? 0 : Math.floor(one.pictures.length / 2));
    }

    offer(one) {
      const presets = PRESETS[one.modality] || [];
      this.presets = [["Its own", null, null], ...presets];
      this.part.preset.replaceChildren(...this.presets.map(([name], at) => new Option(name, String(at))));
      this.part.preset.disabled = one.kind !== "image";
    }

    embed(one) {
      const frame = this.part.frame;
      frame.replaceChildren();
      frame.hidden = one.kind !== "document" && one.kind !== "video";
      if (one.kind === "document") {
        const page = document.createElement("iframe");
        page.title = one.description || "Document";
        page.src = one.images[0].url + "/rendered";
        frame.append(page);
      } else if (one.kind === "video") {
        const film = document.createElement("video");
        film.controls = true;
        film.src = one.images[0].url + "/rendered";
        frame.append(film);
      }
    }

    go(to) {
      const one = this.series[this.at];
      if (!one) return;
      const count = one.pictures.length;
      const next = Math.min(count - 1, Math.max(0, to));
      if (next === this.image) return;
      this.direction = next >= this.image ? 1 : -1;
      this.image = next;
      this.part.slider.value = next + 1;
      this.show();
    }

    address(at) {
      const one = this.series[this.at];
      const picture = one.pictures[at];
      const asked = [];
      if (this.window) asked.push(`window=${round(this.window[0])},${round(this.window[1])}`);
      const box = this.part.stage.getBoundingClientRect();
      const need = Math.max(box.width, box.height, 64) * (window.devicePixelRatio || 1) * Math.max(1, this.view.zoom);
      const size = [512, 1024, 2048].find((step) => step >= need);
      if (size && Math.max(picture.rows, picture.columns) > size) asked.push(`viewport=${size},${size}`);
      return picture.url + (asked.length ? "?" + asked.join("&") : "");
    }

    show() {
      const one = this.series[this.at];
      this.part.bl.textContent = `${one.kind === "image" ? "Image" : "Object"} ${this.image + 1} / ${one.pictures.length}`;
      if (one.kind !== "image") {
        this.shown = null;
        this.draw();
        this.say(one.kind === "other" ? "This series has no pictures. It is kept in the archive." : "");
        return;
      }
      const url = this.address(this.image);
      const urls = [url];
      for (let step = 1; step <= AHEAD; step++) {
        const at = this.image + step * this.direction;
        if (at >= 0 && at < one.pictures.length) urls.push(this.address(at));
      }
      const back = this.image - this.direction;
      if (back >= 0 && back < one.pictures.length) urls.push(this.address(back));
      const ready = this.pictures.get(url);
      if (ready) this.present(ready);
      else this.waiting = setTimeout(() => { if (this.address(this.image) === url && !this.pictures.get(url)) this.say("Loading…"); }, 350);
      this.pictures.want(urls, (arrived, picture) => {
        if (arrived !== this.address(this.image)) return;
        if (picture.error) { this.shown = null; this.draw(); this.say(picture.error); } else this.present(picture);
      });
    }

    present(picture) {
      clearTimeout(this.waiting);
      this.say("");
      this.shown = picture;
      this.draw();
    }

    say(text) { this.part.note.textContent = text; }

    draw() {
      const canvas = this.part.canvas;
      const ratio = window.devicePixelRatio || 1;
      const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
      if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
      const context = canvas.getContext("2d");
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, width, height);
      const told = this.shown && (this.window || this.shown.window);
      this.part.br.textContent = this.shown
        ? [told && `C ${round(told[0])}  W ${round(told[1])}`, `${Math.round(this.view.zoom * 100)} %`].filter(Boolean).join("\n") : "";
      if (!this.shown) return;
      const { bitmap } = this.shown;
      const fit = Math.min(width / bitmap.width, height / bitmap.height) * this.view.zoom;
      context.imageSmoothingEnabled = fit < 6;
      context.imageSmoothingQuality = "high";
      context.filter = this.inverted ? "invert(1)" : "none";
      const w = bitmap.width * fit, h = bitmap.height * fit;
      context.drawImage(bitmap, (width - w) / 2 + this.view.x * ratio, (height - h) / 2 + this.view.y * ratio, w, h);
    }

    // --- What people do

    listen() {
      const { stage, preset, slider } = this.part;
      new ResizeObserver(() => this.draw()).observe(stage);
      stage.addEventListener("wheel", (event) => {
        event.preventDefault();
        if (event.ctrlKey) return this.zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1, event);
        // A wheel steps by notches, a touchpad by pixels.
        this.rolled = (this.rolled || 0) + (event.deltaMode === 1 ? event.deltaY * 40 : event.deltaY);
        const steps = Math.trunc(this.rolled / 40) || (Math.abs(event.deltaY) >= 40 ? Math.sign(event.deltaY) : 0);
        if (steps) { this.rolled = 0; this.go(this.image + Math.sign(steps) * Math.min(Math.abs(steps), 3)); }
      }, { passive: false });
      preset.addEventListener("change", () => this.use(Number(preset.value)));
      slider.addEventListener("input", () => this.go(Number(slider.value) - 1));
      this.on("invert", () => this.invert());
      this.on("play", () => (this.timer ? this.stop() : this.play()));
      this.on("in", () => this.zoom(1.25));
      this.on("out", () => this.zoom(0.8));
      this.on("reset", () => this.reset());
      this.on("full", () => this.full());
      this.root.addEventListener("keydown", (event) => this.key(event));
      this.pointers = new Map();
      stage.addEventListener("pointerdown", (event) => this.down(event));
      stage.addEventListener("pointermove", (event) => this.move(event));
      for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => this.up(event));
      stage.addEventListener("dblclick", () => { this.view = { zoom: 1, x: 0, y: 0 }; this.draw(); });
      stage.addEventListener("contextmenu", (event) => event.preventDefault());
    }

    on(name, act) { this.part[name].addEventListener("click", act); }

    key(event) {
      if (event.altKey || event.metaKey || (event.target !== this.root && /SELECT|INPUT/.test(event.target.tagName))) return;
      const acts = {
        ArrowDown: () => this.go(this.image + 1), ArrowUp: () => this.go(this.image - 1),
        PageDown: () => this.go(this.image + 10), PageUp: () => this.go(this.image - 10),
        Home: () => this.go(0), End: () => this.go(1e9),
        ArrowRight: () => this.choose(this.at + 1), ArrowLeft: () => this.choose(this.at - 1),
        " ": () => (this.timer ? this.stop() : this.play()),
        "+": () => this.zoom(1.25), "=": () => this.zoom(1.25), "-": () => this.zoom(0.8),
        i: () => this.invert(), r: () => this.reset(), f: () => this.full(),
      };
      const number = /^[1-9]$/.test(event.key) ? Number(event.key) : 0;
      const act = acts[event.key] || (number && this.presets && number < this.presets.length && (() => this.use(number)));
      if (!act || (event.ctrlKey && event.key !== "+" && event.key !== "-")) return;
      if (event.key === " " && event.target.tagName === "BUTTON") return;
      event.preventDefault();
      act();
    }

    use(at) {
      const [, center, width] = this.presets[at];
      this.part.preset.value = String(at);
      this.window = center === null ? null : [center, width];
      this.show();
    }

    invert() {
      this.inverted = !this.inverted;
      this.part.invert.setAttribute("aria-pressed", String(this.inverted));
      this.draw();
    }

    play() {
      if (this.part.play.disabled) return;
      this.part.play.setAttribute("aria-pressed", "true");
      this.timer = setInterval(() => {
        // Wait for a picture that has not come rather than leave it out.
        if (this.shown !== this.pictures.get(this.address(this.image))) return;
        const count = this.series[this.at].pictures.length;
        this.go((this.image + 1) % count);
      }, FRAME_MS);
    }

    stop() {
      clearInterval(this.timer);
      this.timer = null;
      this.part.play.setAttribute("aria-pressed", "false");
    }

    reset() {
      this.stop();
      this.view = { zoom: 1, x: 0, y: 0 };
      if (this.inverted) this.invert();
      if (this.presets) this.use(0);
    }

    full() {
      if (document.fullscreenElement) document.exitFullscreen();
      else this.root.requestFullscreen().then(() => this.root.focus()).catch(() => {});
    }

    zoom(by, at) {
      const before = this.view.zoom;
      this.view.zoom = Math.min(20, Math.max(0.2, before * by));
      const scale = this.view.zoom / before;
      const box = this.part.stage.getBoundingClientRect();
      const x = at ? at.clientX - box.left - box.width / 2 : 0, y = at ? at.clientY - box.top - box.height / 2 : 0;
      this.view.x = x + (this.view.x - x) * scale;
      this.view.y = y + (this.view.y - y) * scale;
      this.draw();
      clearTimeout(this.sharper);
      this.sharper = setTimeout(() => this.show(), 200);
    }

    down(event) {
      if (event.target === this.part.slider || event.target.closest("iframe, video")) return;
      this.root.focus({ preventScroll: true });
      this.part.stage.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, event);
      this.scrolled = 0;
    }

    move(event) {
      const last = this.pointers.get(event.pointerId);
      if (!last) return;
      this.pointers.set(event.pointerId, event);
      const dx = event.clientX - last.clientX, dy = event.clientY - last.clientY;
      if (this.pointers.size === 2) return this.pinch(event, last);
      if (event.pointerType === "touch") {
        const one = this.series[this.at];
        const step = one ? Math.max(6, Math.min(30, this.part.stage.clientHeight / one.pictures.length)) : 30;
        this.scrolled += dy;
        const steps = Math.trunc(this.scrolled / step);
        if (steps) { this.scrolled -= steps * step; this.go(this.image + steps); }
      } else if (event.shiftKey || event.buttons & 4) {
        this.view.x += dx; this.view.y += dy;
        this.part.stage.classList.add("v-moving");
        this.draw();
      } else if (event.buttons & 2) {
        this.zoom(1 - dy / 200);
      } else {
        this.level(dx, dy);
      }
    }

    pinch(event, last) {
      const other = [...this.pointers.values()].find((one) => one.pointerId !== event.pointerId);
      const far = (a) => Math.hypot(a.clientX - other.clientX, a.clientY - other.clientY) || 1;
      this.view.x += (event.clientX - last.clientX) / 2;
      this.view.y += (event.clientY - last.clientY) / 2;
      const middle = { clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 };
      this.zoom(far(event) / far(last), middle);
    }

    up(event) {
      this.pointers.delete(event.pointerId);
      this.part.stage.classList.remove("v-moving");
    }

    level(dx, dy) {
      const now = this.window || (this.shown && this.shown.window);
      if (!now) return;
      // One pixel changes a wide window more than a narrow one.
      const pace = Math.max(now[1], 20) / 300;
      this.window = [now[0] + dy * pace, Math.max(1, now[1] + dx * pace)];
      this.part.preset.value = "";
      this.part.br.textContent = `C ${round(this.window[0])}  W ${round(this.window[1])}`;
      if (this.pending) return;
      this.pending = setTimeout(() => { this.pending = null; this.show(); }, 60);
    }
  }

  function expand(series) {
    // Every frame of every object is a picture.
    return series.images.flatMap((image) => Array.from({ length: image.frames }, (_, n) => ({
      rows: image.rows,
      columns: image.columns,
      url: image.frames > 1 ? `${image.url}/frames/${n + 1}/rendered` : `${image.url}/rendered`,
    })));
  }

  function round(value) { return Math.abs(value) < 10 ? Math.round(value * 100) / 100 : Math.round(value); }

  document.querySelectorAll(".v[data-contents]").forEach((root) => { root.viewer = root.viewer || new Viewer(root); });
})();
