"use strict";
(async () => {
  const [{ spec, columns }] = featcache.read("map");
  const SHOWN = 60;
  const { folder, labels, splits } = columns;
  const controls = document.getElementById("map-controls");
  const legend = document.getElementById("map-legend");
  const status = document.getElementById("map-status");
  const list = document.getElementById("map-list");
  const GLYPHS = { circle: "●", square: "■", "triangle-up": "▲", diamond: "◆", cross: "✚", "triangle-down": "▼",
    "triangle-right": "▶", "triangle-left": "◀" };

  // 0 was not scored, 1 is right, 2 is wrong
  const outcome = columns.predicted.map((predicted, i) => (predicted < 0 ? 0 : predicted === columns.label[i] ? 1 : 2));
  const every = columns.x.map((x, i) => i);
  let within = every;

  const lines = (i) => {
    const predicted = columns.predicted[i];
    const said = predicted < 0 ? "not scored" : predicted === columns.label[i] ? "predicted right"
      : `predicted ${labels[predicted]}`;
    return [labels[columns.label[i]], `${splits[columns.split[i]]}, ${said}`];
  };
  const picture = (i) => featcache.picture(columns.picture[i], folder + columns.path[i], lines(i));

  spec.data.values = every.map((i) => ({ i, x: columns.x[i], y: columns.y[i], c: columns.label[i], o: outcome[i] }));
  const host = document.getElementById("map-chart");
  spec.height = Math.min(spec.height, Math.max(300, Math.round(host.clientWidth * 0.75)));
  const { view } = await featcache.draw(host, spec, { renderer: "canvas" });

  // The point nearest to the pointer is meant, since points are too small to be met

  const NEAR = 12;
  const nearest = (event) => {
    const canvas = host.querySelector("canvas").getBoundingClientRect();
    const [left, top] = view.origin();
    const line = (name, start) => {
      const scale = view.scale(name);
      return [start + scale(0), scale(1) - scale(0)];
    };
    const [x0, dx] = line("x", canvas.left + left);
    const [y0, dy] = line("y", canvas.top + top);
    let found = -1;
    let least = NEAR * NEAR;
    for (const i of every) {
      const distance = (x0 + dx * columns.x[i] - event.clientX) ** 2 + (y0 + dy * columns.y[i] - event.clientY) ** 2;
      if (distance < least) [found, least] = [i, distance];
    }
    return found;
  };
  const say = (event) => {
    const i = event.buttons && event.type === "pointermove" ? -1 : nearest(event);
    if (i < 0) return featcache.hideTip();
    const whole = document.createElement("span");
    whole.className = "path";
    whole.textContent = folder + columns.path[i];
    const box = document.createElement("ul");
    box.append(picture(i));
    return featcache.showTip(event, box, whole);
  };
  for (const type of ["pointermove", "pointerdown"]) host.addEventListener(type, say);
  host.addEventListener("pointerleave", featcache.hideTip);

  const value = (name) => new FormData(controls).get(name);

  const listed = () => {
    const chosen = Number(value("chosen"));
    const wanted = Number(value("outcome"));
    if (within === every && chosen < 0 && wanted < 0) return [];
    return within.filter(
      (i) => (chosen < 0 || columns.label[i] === chosen) && (wanted < 0 || outcome[i] === wanted),
    );
  };
  const count = (n) => n.toLocaleString("en");
  const some = (found) => {
    const seen = found.filter((i) => columns.picture[i] >= 0);
    const from = seen.length < SHOWN ? found : seen;
    const step = Math.max(1, from.length / SHOWN);
    return from.filter((i, k) => Math.floor(k / step) !== Math.floor((k - 1) / step)).slice(0, SHOWN);
  };
  const show = () => {
    const found = listed();
    const none = within === every && Number(value("chosen")) < 0 && Number(value("outcome")) < 0;
    const are = found.length === 1 ? "picture is" : "pictures are";
    const rest = found.length > SHOWN ? `; ${SHOWN} of them are shown, ${count(found.length - SHOWN)} more are not` : "";
    status.textContent = none ? "" : `${count(found.length)} ${are} selected${rest}.`;
    list.replaceChildren(...some(found).map(picture));
  };
  const explain = () => {
    const colors = spec.encoding.color;
    const entries = [];
    const chosen = Number(value("chosen"));
    const [wrong, right, grey] = colors.condition.map((condition) => condition.value);
    if (value("by") === "outcome") {
      entries.push(["✚", wrong, "predicted wrong"], ["●", right, "predicted right"], ["●", grey, "not scored"]);
    } else if (labels.length > colors.scale.range.length) {
      if (chosen < 0) entries.push(["●", grey, `${labels.length} classes are too many to tell apart by colour: choose one`]);
      else entries.push(["●", wrong, labels[chosen]], ["●", grey, "other classes"]);
    } else {
      for (const [i, label] of labels.entries()) {
        const shown = chosen < 0 || i === chosen;
        entries.push([GLYPHS[spec.encoding.shape.scale.range[i]], shown ? colors.scale.range[i] : grey, label]);
      }
    }
    legend.replaceChildren(...entries.map(([glyph, color, text]) => {
      const entry = document.createElement("span");
      const mark = document.createElement("i");
      mark.textContent = glyph;
      mark.style.color = color;
      mark.ariaHidden = "true";
      entry.append(mark, ` ${text}`);
      return entry;
    }));
  };

  controls.addEventListener("change", (event) => {
    if (event.target.name === "chosen") controls.elements.by.value = "class";
    view.signal("by", value("by")).signal("chosen", Number(value("chosen"))).runAsync();
    explain();
    show();
  });
  controls.addEventListener("submit", (event) => event.preventDefault());
  view.addSignalListener("brush", (name, { x, y }) => {
    const inside = (at, [a, b]) => at >= Math.min(a, b) && at <= Math.max(a, b);
    within = x && y ? every.filter((i) => inside(columns.x[i], x) && inside(columns.y[i], y)) : every;
    show();
  });
  view.signal("by", value("by")).runAsync();
  explain();
})();
