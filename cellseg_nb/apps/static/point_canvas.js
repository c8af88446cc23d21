// The canvas of PointCanvas (nbs/apps/04_point_widgets.ipynb): a picture, its points and scribbles.

const between = (value, low, high) => Math.min(Math.max(value, low), high);

// zoom: screen px per pixel of the picture; left, top: its corner on the canvas, screen px
function makeView(canvas, model) {
  const view = { zoom: 1, left: 0, top: 0, whole: true };
  view.fit = () => {
    const [height, width] = model.get("shape");
    view.zoom = Math.min(canvas.clientWidth / width, canvas.clientHeight / height);
    view.left = (canvas.clientWidth - width * view.zoom) / 2;
    view.top = (canvas.clientHeight - height * view.zoom) / 2;
    view.whole = true;
  };
  view.toScreen = ([y, x]) => [view.left + (x + 0.5) * view.zoom, view.top + (y + 0.5) * view.zoom];
  view.toPicture = ([across, down]) =>
    [(down - view.top) / view.zoom - 0.5, (across - view.left) / view.zoom - 0.5];
  view.enlarge = (times, [across, down]) => {
    const zoom = between(view.zoom * times, 0.02, 64);
    view.left = across - (across - view.left) * zoom / view.zoom;
    view.top = down - (down - view.top) * zoom / view.zoom;
    view.zoom = zoom;
    view.whole = false;
  };
  view.pan = (across, down) => {
    view.left += across;
    view.top += down;
    view.whole = false;
  };
  return view;
}

const INK = [null, "#d55e00", "#0072b2"];  // scribbles: 1 = background, 2 = foreground

function drawStroke(context, stroke, scale) {
  context.globalCompositeOperation = stroke.label ? "source-over" : "destination-out";
  context.strokeStyle = INK[stroke.label] ?? "black";
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = 2 * stroke.radius_px * scale;
  const [first, ...others] = stroke.path.map(([y, x]) => [(x + 0.5) * scale, (y + 0.5) * scale]);
  context.beginPath();
  context.moveTo(first[0] - 0.01, first[1]);  // a path without length would not be drawn
  for (const one of [first, ...others]) context.lineTo(...one);
  context.stroke();
}

// Images that Python sends as PNG; only the newest of each kind is kept.
function makeImages(model, paint) {
  const images = {}, newest = {};
  for (const name of ["picture", "overlay", "scribbled"]) {
    const load = async () => {
      const mine = newest[name] = (newest[name] ?? 0) + 1, bytes = model.get(name);
      const image = bytes.byteLength ? await createImageBitmap(new Blob([bytes])) : null;
      if (mine !== newest[name]) return;
      images[name] = image;
      paint();
    };
    model.on(`change:${name}`, load);
    load();
  }
  return images;
}

function scribbleLayer(layer, images, strokes, shape) {
  const size = images.picture;
  layer.width = size.width;
  layer.height = size.height;
  const context = layer.getContext("2d");
  if (images.scribbled) context.drawImage(images.scribbled, 0, 0, size.width, size.height);
  strokes.forEach(stroke => drawStroke(context, stroke, size.width / shape[1]));
  return layer;
}

function drawPoint(context, [across, down], colour, radius) {
  for (const [style, width] of [["black", 4], [colour, 2]]) {
    context.beginPath();
    context.arc(across, down, radius, 0, 2 * Math.PI);
    context.strokeStyle = style;
    context.lineWidth = width;
    context.stroke();
  }
  context.fillStyle = colour;
  context.fillRect(across - 1, down - 1, 2, 2);
}

function makePainter(canvas, model, view, images, hand) {
  const context = canvas.getContext("2d"), layer = document.createElement("canvas");
  return () => {
    const ratio = window.devicePixelRatio || 1, shape = model.get("shape");
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !images.picture) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    if (view.whole) view.fit();
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = view.zoom < 1;
    const show = (image, strength) => {
      context.globalAlpha = strength;
      const area = [view.left, view.top, shape[1] * view.zoom, shape[0] * view.zoom];
      if (image) context.drawImage(image, ...area);
      context.globalAlpha = 1;
    };
    const strokes = [...model.get("strokes"), ...(hand.stroke ? [hand.stroke] : [])];
    show(images.picture, 1);
    show(images.overlay, 1);
    if (strokes.length || images.scribbled)
      show(scribbleLayer(layer, images, strokes, shape), 0.5);
    const colours = model.get("colours"), radius = between(2.5 * view.zoom, 3, 9);
    for (const [y, x, kind] of hand.points ?? model.get("points"))
      drawPoint(context, view.toScreen([y, x]), colours[kind % colours.length], radius);
    canvas.dataset.view = [view.left, view.top, view.zoom].join(" ");
  };
}

const REACH = 10, STILL = 4;  // how near counts as on a point, how far still as a click; screen px

function makeHand(canvas, model, view) {
  const hand = { points: null, stroke: null, doing: null };
  const round = position => position.map(value => Math.round(value * 100) / 100);
  hand.at = event => [event.offsetX, event.offsetY];
  hand.save = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  hand.inside = position => {
    const last = model.get("shape").map(edge => edge - 1);
    const kept = position.map((value, axis) => between(value, 0, last[axis]));
    return [round(kept), kept.every((value, axis) => Math.abs(value - position[axis]) <= 0.5)];
  };
  hand.nearest = ([across, down]) => {
    let best = -1, least = REACH;
    model.get("points").forEach(([y, x], index) => {
      const [left, top] = view.toScreen([y, x]);
      const distance = Math.hypot(left - across, top - down);
      if (distance <= least) [best, least] = [index, distance];
    });
    return best;
  };
  hand.remove = index => {
    if (index >= 0) hand.save("points", model.get("points").filter((_, n) => n !== index));
  };
  hand.place = screen => {
    const [position, isInside] = hand.inside(view.toPicture(screen));
    if (isInside) hand.save("points", [...model.get("points"), [...position, model.get("kind")]]);
  };
  hand.move = (index, screen) => {
    const [position] = hand.inside(view.toPicture(screen)), points = model.get("points");
    hand.points = points.map((one, n) => n === index ? [...position, one[2]] : one);
  };
  hand.brush = screen => {
    const path = hand.stroke?.path ?? [], label = model.get("tool") - 1;
    const next = round(view.toPicture(screen));
    hand.stroke = { label, radius_px: model.get("brush_px"), path: [...path, next] };
  };
  return hand;
}

function listen(canvas, model, view, hand, draw) {
  const on = (name, act) => canvas.addEventListener(name, event => {
    act(event, hand.at(event));
    draw();
  }, { passive: false });
  on("pointerdown", (event, start) => {
    const placing = model.get("tool") === 0, on_point = placing ? hand.nearest(start) : -1;
    canvas.focus({ preventScroll: true });
    if (placing && (event.button === 2 || event.button === 0 && event.shiftKey))
      return hand.remove(on_point);
    if (event.button === 2) return;
    canvas.setPointerCapture(event.pointerId);
    const what = event.button === 1 ? "pan" : !placing ? "paint" : on_point < 0 ? "click" : "move";
    hand.doing = { what, index: on_point, last: start, start };
    if (what === "paint") hand.brush(start);
  });
  on("pointermove", (event, here) => {
    const doing = hand.doing;
    if (!doing) return;
    const far = Math.hypot(here[0] - doing.start[0], here[1] - doing.start[1]) > STILL;
    if (doing.what === "click" && far) doing.what = "pan";
    if (doing.what === "pan") view.pan(here[0] - doing.last[0], here[1] - doing.last[1]);
    if (doing.what === "move" && (far || hand.points)) hand.move(doing.index, here);
    if (doing.what === "paint") hand.brush(here);
    doing.last = here;
  });
  on("pointerup", (event, here) => {
    if (hand.doing?.what === "click") hand.place(here);
    if (hand.points) hand.save("points", hand.points);
    if (hand.stroke) hand.save("strokes", [...model.get("strokes"), hand.stroke]);
    hand.doing = hand.points = hand.stroke = null;
  });
  on("pointercancel", () => { hand.doing = hand.points = hand.stroke = null; });
  on("contextmenu", event => { event.preventDefault(); event.stopPropagation(); });
  on("wheel", (event, here) => {
    event.preventDefault();
    view.enlarge(Math.exp(-0.0015 * event.deltaY), here);
  });
}

function addButtons(frame, canvas, model, view, draw) {
  const middle = () => [canvas.clientWidth / 2, canvas.clientHeight / 2];
  const acts = [
    ["+", "+", "Zoom in", () => view.enlarge(1.5, middle())],
    ["-", "−", "Zoom out", () => view.enlarge(1 / 1.5, middle())],
    ["0", "fit", "Whole picture", () => view.fit()],
    ["z", "↶", "Undo", () => model.send({ undo: true })],
  ];
  const bar = frame.appendChild(document.createElement("div"));
  for (const [key, text, name, act] of acts) {
    const button = bar.appendChild(document.createElement("button"));
    const keys = key === "z" ? "Ctrl + z" : key;
    Object.assign(button, { textContent: text, title: `${name} (${keys})` });
    button.setAttribute("aria-label", name);
    button.onclick = () => { act(); draw(); };
  }
  canvas.addEventListener("keydown", event => {
    const wanted = acts.find(([key]) => key === event.key);
    if (!wanted || (event.key === "z") !== (event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    wanted[3]();
    draw();
  });
}

function render({ model, el }) {
  const frame = el.appendChild(document.createElement("div"));
  frame.className = "cellseg-points";
  frame.setAttribute("data-jp-suppress-context-menu", "");
  frame.setAttribute("data-lm-suppress-shortcuts", "true");
  const canvas = frame.appendChild(document.createElement("canvas"));
  Object.assign(canvas, { tabIndex: 0, role: "img" });
  const name = () => canvas.setAttribute("aria-label", model.get("label"));
  let waiting = false, paint = () => {};
  const draw = () => {
    if (!waiting) requestAnimationFrame(() => { waiting = false; paint(); });
    waiting = true;
  };
  const view = makeView(canvas, model), hand = makeHand(canvas, model, view);
  paint = makePainter(canvas, model, view, makeImages(model, draw), hand);
  listen(canvas, model, view, hand, draw);
  addButtons(frame, canvas, model, view, draw);
  for (const trait of ["points", "strokes", "colours"]) model.on(`change:${trait}`, draw);
  model.on("change:shape", () => { view.whole = true; draw(); });
  model.on("change:label", name);
  name();
  const watch = new ResizeObserver(draw);
  watch.observe(canvas);
  return () => watch.disconnect();
}
export default { render };
