"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);

  // Text from the file only ever becomes the text of a node.
  function add(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key === "on") node.addEventListener("click", value);
      else node.setAttribute(key, value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  }
  const el = (tag, attributes, ...children) =>
    add(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    add(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  function bytes(n) {
    if (n < 1e4) return Math.round(n) + " B";
    for (const unit of ["kB", "MB", "GB", "TB"]) {
      n /= 1e3;
      if (n < 999.5) return n.toFixed(n < 9.995 ? 2 : n < 99.95 ? 1 : 0) + " " + unit;
    }
    return n.toFixed(0) + " TB";
  }
  const count = (n) => n.toLocaleString("en");
  function short(n) {
    for (const [unit, value] of [["T", 1e12], ["B", 1e9], ["M", 1e6]]) {
      if (n >= value) return (n / value).toFixed(2) + " " + unit;
    }
    return count(Math.round(n));
  }
  const percent = (part, whole) => (whole > 0 ? (100 * part) / whole : 100).toFixed(1) + " %";
  const many = (n, word) => count(n) + " " + word + (n === 1 ? "" : "s");

  // A node of the tree: the model, a layer, a tensor, or several that share one tile.
  function node(kind, name, sums) {
    const [tensors, original, stored, weights, floor, sampled, bars] = sums;
    return { kind, name, tensors, original, stored, weights, floor, sampled, bars, parts: [] };
  }
  const root = node("model", data.name || "model", data.all.slice(1));
  root.parts = data.layers.map(([name, ...sums]) => node("layer", name || "(no name)", sums));
  root.parts.forEach((layer) => (layer.parent = root));
  const tensors = data.tensors.map((row) => {
    const [layer, name, shape, kind, original, stored, weights, floor, bars] = row;
    const sums = [1, original, stored, weights, floor < 0 ? stored : floor, 0, bars];
    const tensor = node("tensor", data.names[name] || "(no name)", sums);
    [tensor.dtype, tensor.as] = data.kinds[kind].split(" ");
    tensor.sampled = floor < 0 ? 0 : stored;
    tensor.shape = data.shapes[shape];
    tensor.parent = root.parts[layer];
    tensor.parent.parts.push(tensor);
    return tensor;
  });
  // What had no place on the page, so that all sums are right.
  function others(parent, what, n) {
    const left = (key) => parent[key] - parent.parts.reduce((sum, part) => sum + part[key], 0);
    const sums = ["tensors", "original", "stored", "weights", "floor", "sampled"].map(left);
    const rest = node("others", count(n) + " smaller " + what, [...sums, null]);
    rest.parent = parent;
    parent.parts.push(rest);
  }
  for (const layer of root.parts) {
    const missing = layer.tensors - layer.parts.length;
    if (missing > 0) others(layer, missing === 1 ? "tensor" : "tensors", missing);
  }
  if (data.rest) others(root, "layers", Number(data.rest[0]));

  const full = (part) =>
    part.kind === "tensor" && part.name !== part.parent.name
      ? part.parent.name + "." + part.name : part.name;
  const bits = (part, size) => (part.weights > 0 ? (8 * size) / part.weights : 0);
  const known = (part) => part.sampled > 0 && part.sampled >= part.stored / 100;
  const isRaw = (part) => part.original > 0 && part.stored >= part.original;
  function shade(part) {
    const share = part.original > 0 ? part.stored / part.original : 1;
    if (!data.compressed) {
      const could = part.original > 0 ? part.floor / part.original : 1;
      return could < 0.5 ? "c0" : could < 0.7 ? "c1" : could < 0.85 ? "c2" : "c3";
    }
    if (share >= 1) return "cr";
    return share < 0.5 ? "c0" : share < 0.7 ? "c1" : share < 0.85 ? "c2" : "c3";
  }

  // Theme: what the system says, until the switch is used.
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const nameTheme = () => ($("theme").textContent = dark() ? "Light" : "Dark");
  $("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    nameTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  nameTheme();

  // A bar of the original size, filled as far as the stored size, with a mark at the floor.
  function meter(part, most) {
    const width = (n) => Math.min(100, (100 * n) / (most || 1)) + "%";
    const back = el("div", { class: "meter" });
    const fill = el("i", { class: data.compressed && isRaw(part) ? "raw" : "" });
    back.style.width = Math.max(0.4, Math.min(100, (100 * part.original) / (most || 1))) + "%";
    const within = (n) => (part.original > 0 ? Math.min(100, (100 * n) / part.original) : 0) + "%";
    fill.style.width = within(part.stored);
    back.append(fill);
    if (known(part)) {
      const mark = el("u", { title: "floor" });
      mark.style.left = within(part.floor);
      back.append(mark);
    }
    return el("div", { class: "meter-box" }, back);
  }

  // Exponents: a digit of base 64 is the height of a bar.
  const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  function exponents(bars) {
    if (!bars) return null;
    const [first, text, zeros] = bars;
    const heights = [...text].map((digit) => DIGITS.indexOf(digit));
    const [w, h, left] = [300, 118, 4];
    const step = (w - 2 * left) / Math.max(heights.length, 12);
    const chart = svg("svg", {
      class: "bars", viewBox: `0 0 ${w} ${h + 18}`, role: "img",
      "aria-label": "How often each exponent occurs",
    }, svg("line", { x1: 0, x2: w, y1: h + 0.5, y2: h + 0.5 }));
    const offset = left + (w - 2 * left - step * heights.length) / 2;
    const every = Math.ceil(27 / step);
    const sum = heights.reduce((a, b) => a + b, 0) || 1;
    heights.forEach((height, i) => {
      const tall = Math.max(height > 0 ? 1 : 0, (height / 63) * (h - 6));
      const x = offset + i * step;
      chart.append(svg("rect", {
        x: x + step * 0.08, width: step * 0.84, y: h - tall, height: tall,
        rx: Math.min(2, step / 5),
      }, svg("title", {}, `2^${first + i}: about ${((100 * height) / sum).toFixed(1)} %`)));
      if (i % every === 0) {
        const label = String(first + i).replace("-", "\u2212");
        chart.append(svg("text", { x: x + step / 2, y: h + 14, "text-anchor": "middle" }, label));
      }
    });
    const note = zeros > 0 ? `${(zeros / 10).toFixed(1)} % are zero or subnormal` : "";
    return [el("h3", {}, "Exponents"), chart, el("div", { class: "axis" }, note)];
  }

  const AS = {
    ans: "ANS, entropy coded", raw: "raw, as it is", tbe: "triple bitmaps",
    delta: "differences from a base", base: "equal to the base", shared: "equal to another tensor",
    plain: "safetensors, not compressed", unknown: "unknown to this version",
  };
  function details(part) {
    const most = bits(part, part.original);
    const facts = [];
    const fact = (name, value) => facts.push(el("dt", {}, name), el("dd", {}, value));
    if (part.kind === "tensor") {
      fact("Type", part.dtype);
      fact("Shape", part.shape || "scalar");
      fact("Stored as", AS[part.as] || part.as);
    } else fact("Tensors", count(part.tensors));
    fact("Weights", short(part.weights));
    fact("Original", bytes(part.original));
    if (data.compressed) {
      fact("Stored", `${bytes(part.stored)}, ${percent(part.stored, part.original)}`);
    }
    if (data.compressed) {
      fact("Bits a weight", `${bits(part, part.stored).toFixed(2)} of ${most.toFixed(2)}`);
    } else fact("Bits a weight", most.toFixed(2));
    if (part === root) fact("Headers, index", bytes(data.stored - root.stored));
    fact("Floor", known(part) ? `${bits(part, part.floor).toFixed(2)} bits` : "not measured");
    const up = part.kind === "layer" && path[path.length - 1] !== part && part.parts.length > 0
      ? el("button", { class: "more", type: "button", on: () => open(part) }, "Open") : null;
    $("details").replaceChildren(
      el("h2", {}, full(part)),
      el("dl", {}, ...facts),
      meter(part, part.original),
      el("div", { class: "axis" }, el("span", {}, "0"), el("span", {}, most.toFixed(0) + " bits")),
      ...(exponents(part.bars) || []),
      ...(up ? [up] : []),
    );
  }

  // The treemap.
  const TILES = 150;
  let path = [root];
  let chosen = root;
  const area = (part) => (root.stored > 0 ? part.stored : part.original);
  function tiles(parent) {
    if (parent.tiles) return parent.tiles;
    const parts = parent.parts.filter((part) => area(part) > 0);
    parts.sort((a, b) => area(b) - area(a));
    if (parts.length > TILES) {
      const rest = parts.splice(TILES - 1);
      const sum = (key) => rest.reduce((total, part) => total + part[key], 0);
      const keys = ["tensors", "original", "stored", "weights", "floor", "sampled"];
      const group = node("group", count(rest.length) + " smaller", [...keys.map(sum), null]);
      Object.assign(group, { parent, parts: rest });
      parts.push(group);
    }
    return (parent.tiles = parts);
  }

  // Rows of tiles that are as square as possible (Bruls, Huizing, van Wijk, 2000).
  function squarify(parts, x, y, w, h, place) {
    const total = parts.reduce((sum, part) => sum + area(part), 0);
    const scale = (w * h) / (total || 1);
    let at = 0;
    while (at < parts.length) {
      const side = Math.min(w, h);
      let [sum, end, worst] = [0, at, Infinity];
      while (end < parts.length) {
        const next = sum + area(parts[end]) * scale;
        const ratio = (a) => {
          const wide = (side * side * a) / (next * next);
          return Math.max(wide, 1 / wide);
        };
        const now = Math.max(ratio(area(parts[at]) * scale), ratio(area(parts[end]) * scale));
        if (now > worst) break;
        [sum, worst] = [next, now];
        end += 1;
      }
      const thick = side > 0 ? sum / side : 0;
      let along = 0;
      for (; at < end; at += 1) {
        const long = thick > 0 ? (area(parts[at]) * scale) / thick : 0;
        if (w >= h) place(parts[at], x, y + along, thick, long);
        else place(parts[at], x + along, y, long, thick);
        along += long;
      }
      if (w >= h) [x, w] = [x + thick, w - thick];
      else [y, h] = [y + thick, h - thick];
    }
  }

  const cut = (text, width, size) => {
    const most = Math.floor(width / size);
    if (text.length <= most) return text;
    // The ends of names differ more than their beginnings.
    return most < 4 ? "" : "\u2026" + text.slice(text.length - most + 1);
  };
  function drawMap() {
    const here = path[path.length - 1];
    const width = Math.max(240, $("map").clientWidth);
    const height = Math.round(Math.min(460, Math.max(300, width * 0.56)));
    const view = svg("svg", { viewBox: `0 0 ${width} ${height}`, height });
    squarify(tiles(here), 0, 0, width, height, (part, x, y, w, h) => {
      const tone = shade(part);
      const closed = part.kind === "tensor" || part.kind === "others";
      const go = () => (closed ? choose(part) : open(part));
      const label = `${full(part)}: ${bytes(part.stored)}`;
      const tile = svg("g", { role: "button", tabindex: 0, "aria-label": label, on: go },
        svg("rect", { x, y, width: Math.max(0, w), height: Math.max(0, h), class: tone, rx: 3 }),
        svg("title", {}, `${label}, ${percent(part.stored, part.original)} of the original`));
      tile.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          go();
        }
      });
      const name = cut(part.name, w - 14, 7.5);
      if (h > 22 && w > 44 && name) {
        tile.append(svg("text", { x: x + 8, y: y + 18, class: "t" + tone }, name));
        const size = bytes(area(part));
        if (h > 40 && w > size.length * 7 + 12) {
          tile.append(svg("text", { x: x + 8, y: y + 34, class: "small t" + tone }, size));
        }
      }
      part.tile = tile;
      if (part === chosen) tile.classList.add("chosen");
      view.append(tile);
    });
    $("map").replaceChildren(view);
    const left = here.parts.filter((part) => part.stored === 0).length;
    const without = root.stored > 0 && left > 0
      ? [el("span", {}, `(${count(left)} without bytes of their own)`)] : [];
    $("path").replaceChildren(...path.flatMap((part, i) => {
      const last = i === path.length - 1;
      const step = last ? el("span", {}, part.name)
        : el("button", { type: "button", on: () => back(i) }, part.name);
      return i ? [el("span", {}, "\u203A"), step] : [step];
    }), ...without);
  }
  function choose(part) {
    if (chosen.tile) chosen.tile.classList.remove("chosen");
    chosen = part;
    if (part.tile) part.tile.classList.add("chosen");
    details(part);
  }
  function open(part) {
    path = path.concat([part]);
    if (part.kind === "layer") path = [root, part];
    // The only tensor of a layer says more than the layer.
    chosen = part.kind === "layer" && part.parts.length === 1 ? part.parts[0] : part;
    drawMap();
    details(chosen);
  }
  function back(i) {
    path = path.slice(0, i + 1);
    chosen = path[i];
    drawMap();
    details(chosen);
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && path.length > 1) back(path.length - 2);
  });
  function show(part) {
    if (part.kind === "tensor") {
      open(part.parent);
      choose(part);
    } else open(part);
    $("map-card").scrollIntoView({ behavior: "smooth", block: "start" });
  }

  // Rows that are made when they are asked for.
  function rows(box, list, make, first, step) {
    const more = el("button", { class: "more", type: "button" });
    let at = 0;
    const next = (n) => {
      const end = Math.min(list.length, at + n);
      for (; at < end; at += 1) more.before(...make(list[at]));
      const left = list.length - at;
      more.textContent = left > step
        ? `Show ${count(step)} more of ${count(left)}` : `Show the other ${count(left)}`;
      more.hidden = at === list.length;
    };
    box.append(more);
    more.addEventListener("click", () => next(step));
    next(first);
  }
  function bitsAndFloor(part) {
    const stored = bits(part, part.stored).toFixed(2);
    return known(part) ? `${stored} / ${bits(part, part.floor).toFixed(2)}` : stored;
  }
  function line(part, most) {
    return [
      el("span", { class: "name", title: full(part) }, part.name),
      meter(part, most),
      el("span", { class: "n" }, bytes(part.stored)),
      el("span", { class: "n" }, percent(part.stored, part.original)),
      el("span", { class: "n bits soft" }, bitsAndFloor(part)),
    ];
  }
  function drawList() {
    const most = Math.max(...root.parts.map((part) => part.original), 1);
    $("list").append(el("div", { class: "row head" }, el("span", { class: "name" }, "Layer"),
      el("span", { class: "meter-head" }, ""), el("span", { class: "n" }, "stored"),
      el("span", { class: "n" }, "of orig."), el("span", { class: "n bits" }, "bits / floor")));
    rows($("list"), root.parts, (layer) => {
      if (layer.kind === "others") return [el("div", { class: "row" }, ...line(layer, most))];
      const within = el("div", { class: "within" });
      within.hidden = true;
      const row = el("button", { class: "row layer", type: "button", "aria-expanded": "false" },
        ...line(layer, most));
      row.addEventListener("click", () => {
        const wanted = within.hidden;
        if (wanted && !within.childElementCount) {
          const biggest = layer.parts.reduce((a, part) => Math.max(a, part.original), 1);
          rows(within, layer.parts, (part) => {
            const cells = line(part, biggest);
            if (part.kind !== "tensor") return [el("div", { class: "row" }, ...cells)];
            const go = () => show(part);
            return [el("button", { class: "row", type: "button", on: go }, ...cells)];
          }, 60, 200);
        }
        within.hidden = !wanted;
        row.setAttribute("aria-expanded", String(wanted));
      });
      return [row, within];
    }, 40, 200);
  }

  function table(head, body) {
    // A phone has no room for some columns.
    const hidden = { "": "bar", tensors: "count" };
    const cells = (tag, row) =>
      row.map((cell, i) => el(tag, { class: hidden[head[i]] || "" }, cell));
    return el("table", {},
      el("thead", {}, el("tr", {}, ...cells("th", head))),
      el("tbody", {}, ...body.map((row) => el("tr", {}, ...cells("td", row)))));
  }
  const link = (part) =>
    el("button", { class: "link", type: "button", on: () => show(part) }, full(part));
  const none = (text) => el("p", { class: "soft" }, text);

  function lists() {
    const gain = (part) => part.original - (data.compressed ? part.stored : part.floor);
    const top = tensors.filter((part) => gain(part) > 0).sort((a, b) => gain(b) - gain(a));
    $("best-title").textContent = data.compressed ? "Largest savings" : "What could shrink most";
    $("worst-title").textContent = data.compressed ? "What did not shrink" : "What cannot shrink";
    const less = data.compressed ? "saved" : "bytes less";
    $("best").append(top.length
      ? table(["tensor", less, "to"], top.slice(0, 10).map((part) =>
        [link(part), bytes(gain(part)), percent(part.original - gain(part), part.original)]))
      : none(data.compressed ? "Nothing is smaller than it was." : "Nothing that was measured."));
    const why = (part) => {
      if (part.weights < 32768) return "too small to gain";
      return known(part) && bits(part, part.floor) > 0.985 * bits(part, part.original)
        ? "its bits are noise" : "stored as it is";
    };
    const flat = data.compressed
      ? tensors.filter((part) => isRaw(part) && part.as !== "plain")
      : tensors.filter((part) => known(part) && part.floor > 0.985 * part.original);
    flat.sort((a, b) => b.stored - a.stored);
    $("worst").append(flat.length
      ? table(["tensor", "bytes", "why"], flat.slice(0, 10).map((part) =>
        [link(part), bytes(part.original), why(part)]))
      : none(data.compressed ? "Every tensor is smaller than it was."
        : "In every tensor that was measured there is something to gain."));
    // These sums are of all tensors, also of those that have no place on the page.
    const raw = data.encodings.find(([name]) => name === "raw");
    if (raw && raw[1] > 10) {
      const share = percent(raw[3], root.stored);
      const text = `${count(raw[1])} tensors are stored as they are, ${bytes(raw[3])}: `;
      $("worst").append(el("p", { class: "soft small" }, text + share + " of what is stored."));
    }
  }
  function parts(box, list, word) {
    const made = list.map(([name, ...sums]) => node("part", name, sums));
    made.sort((a, b) => b.original - a.original);
    const most = Math.max(...made.map((part) => part.original), 1);
    $(box).append(made.length ? table([word, "", "tensors", "original", "stored", "bits / floor"],
      made.map((part) => [AS[part.name] || part.name, meter(part, most), count(part.tensors),
        bytes(part.original), bytes(part.stored), bitsAndFloor(part)]))
      : none("No tensors."));
  }
  function files() {
    rows($("files"), data.files, (file) => [el("div", { class: "file" },
      el("div", {}, el("b", {}, file.name || data.name), ` ${bytes(file.original)}`,
        data.compressed ? `, stored in ${bytes(file.stored)}` : ""),
      file.sha256 ? el("div", {}, el("code", {}, "sha256 " + file.sha256)) : null,
      ...file.bases.map(([sha256, hint]) =>
        el("div", {}, "base ", el("code", {}, sha256), hint ? " " + hint : "")),
      ...file.metadata.map(([key, value]) =>
        el("div", { class: "small" }, el("span", { class: "soft" }, key + ": "), value)),
      file.n_metadata > file.metadata.length
        ? none(`and ${many(file.n_metadata - file.metadata.length, "more key")}`) : null,
    )], 20, 100);
    if (data.n_files > data.files.length) {
      $("files").append(none(`and ${many(data.n_files - data.files.length, "more file")}`));
    }
  }
  function summary() {
    const tile = (name, value, note) =>
      el("div", { class: "tile" }, el("span", {}, name), el("b", {}, value), el("span", {}, note));
    const floor = known(root) ? bits(root, root.floor).toFixed(2) : "\u2013";
    const now = bits(root, root.stored).toFixed(2);
    const gap = 100 * (root.stored / (root.floor || 1) - 1);
    const stored = data.compressed
      ? tile("Stored", bytes(data.stored), percent(data.stored, data.original) + " of the original")
      : tile("Could be", known(root) ? bytes(root.floor) : "\u2013",
        known(root) ? percent(root.floor, root.original) + ", at the floor" : "not measured");
    const above = !known(root) ? "not measured"
      : `stored is ${Math.abs(gap).toFixed(1)} % ${gap >= 0 ? "above" : "below"} it`;
    const whole = bits(root, root.original).toFixed(2);
    $("summary").append(el("div", { class: "tiles" },
      tile("Original", bytes(data.original),
        many(data.n_files, "file") + ", " + many(root.tensors, "tensor")),
      stored,
      tile("Bits a weight", now, `${short(root.weights)} weights of ${whole} bits`),
      tile("Entropy floor", floor, above)));
  }

  $("name").textContent = data.name || "model";
  document.title = (data.name || "model") + " \u2013 bigsmall";
  const areas = root.stored > 0 && data.compressed ? "Area: stored bytes." : "Area: bytes.";
  $("map-hint").textContent = areas + " Click a layer to open it.";
  $("list-hint").textContent = "The track is the original, the bar what is stored, the mark the "
    + "floor. Click a layer to see its tensors.";
  const legend = data.compressed
    ? { c0: "less than half is left", c1: "50\u201370 %", c2: "70\u201385 %",
      c3: "85\u2013100 %", cr: "did not shrink" }
    : { c0: "could be less than half", c1: "50\u201370 %", c2: "70\u201385 %",
      c3: "more, or unknown" };
  $("legend").append(...Object.entries(legend).map(([tone, text]) =>
    el("span", {}, el("i", { class: tone }), text)));
  summary();
  drawMap();
  details(root);
  drawList();
  lists();
  parts("dtypes", data.dtypes, "type");
  parts("encodings", data.encodings, "encoding");
  files();
  $("footer").textContent = `Written by bigsmall ${data.version}. This page needs no network.`;
  let drawn = $("map").clientWidth;
  addEventListener("resize", () => {
    if ($("map").clientWidth !== drawn) {
      drawn = $("map").clientWidth;
      drawMap();
    }
  });
})();
