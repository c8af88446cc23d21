// The canvas of SlideCanvas (nbs/apps/05_slide_widgets.ipynb): a slide of any size, of which Python sends what is in view.

const WAIT_MS = 120;  // the hand must rest for so long before Python is asked
const between = (value, low, high) => Math.min(Math.max(value, low), high);

// y, x: what is in the middle, px of the slide; scale: px of the slide per screen px
function makeView(canvas, model) {
  const view = { y: 0, x: 0, scale: 1, whole: true };
  const whole = () => {
    const [height, width] = model.get("shape");
    return Math.max(height / canvas.clientHeight, width / canvas.clientWidth);
  };
  const place = (y, x) => {
    const [height, width] = model.get("shape");
    Object.assign(view, { y: between(y, 0, height), x: between(x, 0, width), whole: false });
  };
  view.fit = () => {
    const [height, width] = model.get("shape");
    Object.assign(view, { y: height / 2, x: width / 2, scale: whole(), whole: true });
  };
  view.toScreen = (y, x) =>
    [(x - view.x) / view.scale + canvas.clientWidth / 2, (y - view.y) / view.scale + canvas.clientHeight / 2];
  view.pan = (across, down) => place(view.y - down * view.scale, view.x - across * view.scale);
  view.enlarge = (times, across, down) => {  // what lies under the pointer stays there
    const scale = between(view.scale / times, Math.min(0.125, whole()), 2 * whole());
    const change = view.scale - scale;
    view.scale = scale;
    place(view.y + (down - canvas.clientHeight / 2) * change, view.x + (across - canvas.clientWidth / 2) * change);
  };
  return view;
}

// The whole slide in small, and above it what was read for the view; only the newest of each is kept.
function makeImages(canvas, model, paint) {
  const images = {}, newest = {};
  for (const name of ["overview", "picture"]) {
    const load = async () => {
      const mine = newest[name] = (newest[name] ?? 0) + 1, bytes = model.get(name), box = model.get("box");
      const image = bytes.byteLength ? await createImageBitmap(new Blob([bytes])) : null;
      if (mine !== newest[name]) return;
      images[name] = image && { image, box: name === "picture" ? box : [0, 0, ...model.get("shape")] };
      if (name === "picture") canvas.dataset.shown = `${mine} ${box.join(" ")}`;
      paint();
    };
    model.on(`change:${name}`, load);
    load();
  }
  return images;
}

function makePainter(canvas, view, images) {
  const context = canvas.getContext("2d");
  return () => {
    const ratio = window.devicePixelRatio || 1, [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.scale(ratio, ratio);
    for (const { image, box: [y0, x0, y1, x1] } of [images.overview, images.picture].filter(Boolean)) {
      const [left, top] = view.toScreen(y0, x0), [right, bottom] = view.toScreen(y1, x1);
      context.imageSmoothingEnabled = image.width > right - left;
      context.drawImage(image, left, top, right - left, bottom - top);
    }
    canvas.dataset.view = [view.y, view.x, view.scale].join(" ");
  };
}

function listen(canvas, view, changed) {
  let last = null;
  const on = (name, act) => canvas.addEventListener(name, event => {
    if (act(event) !== false) changed();
  }, { passive: false });
  on("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    last = [event.offsetX, event.offsetY];
    return false;
  });
  on("pointermove", event => {
    if (!last) return false;
    view.pan(event.offsetX - last[0], event.offsetY - last[1]);
    last = [event.offsetX, event.offsetY];
  });
  for (const name of ["pointerup", "pointercancel"]) on(name, () => { last = null; return false; });
  on("wheel", event => {
    event.preventDefault();
    view.enlarge(Math.exp(-0.0015 * event.deltaY), event.offsetX, event.offsetY);
  });
}

function addButtons(frame, canvas, view, changed) {
  const enlarge = times => () => view.enlarge(times, canvas.clientWidth / 2, canvas.clientHeight / 2);
  const pan = (across, down) => () => view.pan(across * canvas.clientWidth / 4, down * canvas.clientHeight / 4);
  const acts = { "+": enlarge(1.5), "-": enlarge(1 / 1.5), "0": view.fit };
  const keys = { ArrowLeft: pan(1, 0), ArrowRight: pan(-1, 0), ArrowUp: pan(0, 1), ArrowDown: pan(0, -1), ...acts };
  const bar = frame.appendChild(document.createElement("div"));
  for (const [key, text, name] of [["+", "+", "Zoom in"], ["-", "−", "Zoom out"], ["0", "fit", "Whole slide"]]) {
    const button = bar.appendChild(document.createElement("button"));
    Object.assign(button, { textContent: text, title: `${name} (${key})` });
    button.setAttribute("aria-label", name);
    button.onclick = () => { acts[key](); changed(); };
  }
  canvas.addEventListener("keydown", event => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
    changed();
  });
}

function render({ model, el }) {
  const frame = el.appendChild(document.createElement("div"));
  frame.className = "cellseg-slide";
  frame.setAttribute("data-lm-suppress-shortcuts", "true");
  const canvas = frame.appendChild(document.createElement("canvas"));
  Object.assign(canvas, { tabIndex: 0, role: "img" });
  const name = () => canvas.setAttribute("aria-label", model.get("label"));
  const view = makeView(canvas, model);
  let images = {}, waiting = false, timer = null;
  const draw = () => {
    if (!waiting) requestAnimationFrame(() => { waiting = false; makePainter(canvas, view, images)(); });
    waiting = true;
  };
  const ask = () => {
    const ratio = window.devicePixelRatio || 1, { y, x, scale } = view;
    model.set("view", [y, x, scale / ratio, canvas.clientHeight * ratio, canvas.clientWidth * ratio]);
    model.save_changes();
  };
  const changed = () => { draw(); clearTimeout(timer); timer = setTimeout(ask, WAIT_MS); };
  const fit = () => { if (canvas.clientWidth) { view.fit(); changed(); } };
  images = makeImages(canvas, model, draw);
  listen(canvas, view, changed);
  addButtons(frame, canvas, view, changed);
  model.on("change:slide", fit);
  model.on("change:label", name);
  name();
  const watch = new ResizeObserver(() => view.whole ? fit() : changed());
  watch.observe(canvas);
  return () => { watch.disconnect(); clearTimeout(timer); };
}
export default { render };
