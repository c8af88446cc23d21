// Names for what ipywidgets leaves nameless: handles of sliders, and pictures. `given.pictures`: class -> words
const timer = setInterval(() => {
  document.querySelectorAll(".widget-slider").forEach(slider => {
    const label = slider.querySelector("label"), handle = slider.querySelector("[role=slider]");
    const field = slider.nextElementSibling?.querySelector("input[type=text]");
    for (const part of [handle, field])
      if (label && part) part.setAttribute("aria-label", label.textContent);
  });
  Object.entries(given.pictures).forEach(([name, words]) => {
    document.querySelectorAll("img." + name).forEach(picture => picture.alt = words);
  });
}, 300);
setTimeout(() => clearInterval(timer), 60000);
