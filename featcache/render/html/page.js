"use strict";
const featcache = (() => {
  const read = (name) => JSON.parse(document.getElementById(`data-${name}`).textContent);
  const root = document.documentElement;
  const charts = read("charts");
  const thumbnails = read("thumbnails");
  const NARROW = 520;

  // Light and dark

  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const nameButton = () => {
    button.textContent = isDark() ? "Light theme" : "Dark theme";
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    nameButton();
    try {
      localStorage.setItem("featcache-theme", root.dataset.theme);
    } catch {
      // Forbidden for files in some browsers: the choice then lasts as long as the page.
    }
  });
  dark.addEventListener("change", nameButton);
  nameButton();

  // Pictures: each is in the page once, and is decoded when it comes near the screen

  const fill = (image) => {
    image.src = `data:image/webp;base64,${thumbnails[image.dataset.thumbnail]}`;
    delete image.dataset.thumbnail;
  };
  const near = new IntersectionObserver(
    (seen) => {
      for (const { isIntersecting, target } of seen) {
        if (isIntersecting) {
          near.unobserve(target);
          if (target.dataset.thumbnail) fill(target);
        }
      }
    },
    { rootMargin: "600px" },
  );
  for (const image of document.querySelectorAll("img[data-thumbnail]")) near.observe(image);

  const picture = (number, path, lines) => {
    const item = document.createElement("li");
    item.className = "picture";
    const name = path.slice(path.lastIndexOf("/") + 1);
    const image = document.createElement(number < 0 ? "span" : "img");
    if (number < 0) {
      image.className = "box";
      image.textContent = name;
    } else {
      image.dataset.thumbnail = number;
      image.alt = `${name}: ${lines.join(", ")}`;
      image.width = image.height = 96;
      fill(image);
    }
    item.append(image);
    for (const [i, line] of [...lines, name].entries()) {
      const span = document.createElement("span");
      span.className = i === lines.length ? "path" : i ? "rest" : "first";
      span.textContent = line;
      if (i === lines.length) span.title = path;
      item.append(span);
    }
    return item;
  };

  // What is said where the pointer stands

  const tip = document.getElementById("tip");
  const showTip = (event, ...content) => {
    tip.replaceChildren(...content);
    tip.hidden = false;
    const { clientX: x, clientY: y } = event.changedTouches?.[0] ?? event;
    const { offsetWidth: width, offsetHeight: height } = tip;
    tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${y + height + 24 > innerHeight ? Math.max(8, y - height - 12) : y + 14}px`;
  };
  const hideTip = () => {
    tip.hidden = true;
  };
  addEventListener("scroll", hideTip, { passive: true });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideTip();
  });

  const sayValues = (handler, event, item, value) => {
    if (value === null || typeof value !== "object") return hideTip();
    const list = document.createElement("dl");
    for (const [name, text] of Object.entries(value)) {
      const term = document.createElement("dt");
      const said = document.createElement("dd");
      term.textContent = name;
      said.textContent = text;
      list.append(term, said);
    }
    showTip(event, list);
  };

  // Charts: expressions are interpreted, since the page's policy forbids to evaluate text

  const draw = (host, spec, options) => {
    const width = host.clientWidth;
    if (width < NARROW) {
      Object.assign(spec.config.axis, { labelLimit: Math.min(spec.config.axis.labelLimit, 96), labelFontSize: 11 });
    }
    const { entry, entries } = spec.usermeta ?? {};
    if (entry * entries > width) spec.config.legend.columns = Math.max(1, Math.floor(width / entry));
    if ("square" in host.dataset) spec.height = Math.min(spec.height, Math.max(240, Math.round(width * 0.85)));
    return vegaEmbed(host, spec, {
      mode: "vega-lite",
      ast: true,
      actions: false,
      defaultStyle: false,
      renderer: "svg",
      tooltip: sayValues,
      ...options,
    });
  };
  const drawAll = async () => {
    for (const host of document.querySelectorAll("[data-chart]")) {
      try {
        await draw(host, charts[host.dataset.chart]);
      } catch (error) {
        host.textContent = `This chart could not be drawn (${error.message}); the table has its numbers.`;
      }
    }
    root.dataset.drawn = "";
  };
  drawAll();

  // Tables

  const key = (cell) => {
    const text = cell.textContent.trim();
    const number = Number.parseFloat(text.replaceAll(",", ""));
    return cell.classList.contains("words") || Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return 0;
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  };
  const sort = (head) => {
    const table = head.closest("table");
    const first = head.classList.contains("words") ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    const sign = order === "ascending" ? 1 : -1;
    for (const each of head.parentElement.cells) each.setAttribute("aria-sort", each === head ? order : "none");
    const rows = [...table.tBodies[0].rows].map((row) => [key(row.cells[head.cellIndex]), row]);
    rows.sort(([a], [b]) => (a === "") - (b === "") || sign * compare(a, b));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    table.tHead.addEventListener("click", (event) => {
      if (event.target.closest("button")) sort(event.target.closest("th"));
    });
  }

  // Where the reader is

  const contents = document.querySelector(".contents");
  const links = new Map([...contents.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
  const places = [...document.querySelectorAll("main > section")];
  const mark = () => {
    const here = places.findLast((place) => place.getBoundingClientRect().top < innerHeight / 3) ?? places[0];
    const current = links.get(here.id);
    if (current.hasAttribute("aria-current")) return;
    for (const link of links.values()) link.removeAttribute("aria-current");
    current.setAttribute("aria-current", "true");
    contents.scrollLeft = current.offsetLeft - (contents.clientWidth - current.offsetWidth) / 2;
  };
  addEventListener("scroll", mark, { passive: true });
  mark();

  // Paper shows all there is

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const each of closed) each.open = true;
    for (const image of document.querySelectorAll("img[data-thumbnail]")) fill(image);
  });
  addEventListener("afterprint", () => {
    for (const each of closed) each.open = false;
  });

  return { read, draw, picture, showTip, hideTip };
})();
