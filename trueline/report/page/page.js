"use strict";
// Reading values off the panels, points that tell their numbers, tables with CSV, copy buttons. Nothing is fetched.
(() => {
  const parse = (id) => JSON.parse(document.getElementById(id).textContent);
  const tables = parse("tables"), panels = parse("panels");
  const make = (tag, text, css) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (css) element.className = css;
    return element;
  };
  const number = (v) => {
    if (typeof v !== "number") return v === null || v === undefined ? "" : String(v);
    if (Number.isInteger(v) && Math.abs(v) < 1e6) return String(v).replace("-", "−");
    const size = Math.abs(v);
    const text = size < 1e-3 || size >= 1e6 ? v.toExponential(2) : size >= 100 ? v.toFixed(0) : v.toPrecision(3);
    return text.replace("-", "−");
  };

  // ---- tables behind figures: built when opened, downloaded as CSV
  const ofSeries = (panel) => {
    const unit = panel.unit ? ` (${panel.unit})` : "";
    const header = ["step"], byStep = new Map();
    for (const s of panel.series) {
      const sides = [["", s.y], ...(s.low ? [[" low", s.low], [" high", s.high]] : [])];
      for (const [side, values] of sides) {
        const at = header.push(`${s.name}${side}${unit}`) - 1;
        s.x.forEach((step, i) => {
          if (!byStep.has(step)) byStep.set(step, [step]);
          byStep.get(step)[at] = values[i];
        });
      }
    }
    const rows = [...byStep.values()].sort((a, b) => a[0] - b[0]);
    return { header, rows: rows.map((r) => Array.from(header, (_, i) => (r[i] === undefined ? null : r[i]))) };
  };
  const ofRows = (table) => ({
    header: table.columns.map(([name, unit]) => (unit ? `${name} (${unit})` : name)),
    rows: table.rows,
  });
  const content = (d) => (d.dataset.kind === "rows" ? ofRows(tables[d.dataset.of]) : ofSeries(panels[d.dataset.of]));

  const fill = (details) => {
    const place = details.querySelector(".scroll");
    if (place.firstChild) return;
    const { header, rows } = content(details);
    const table = make("table"), head = make("tr"), body = make("tbody");
    const text = rows.length ? rows[0].map((v) => typeof v === "string" && v !== "not finite") : [];
    header.forEach((name, i) => {
      const cell = make("th", name, text[i] ? "" : "n");
      cell.scope = "col";
      head.append(cell);
    });
    for (const row of rows) {
      const line = make("tr");
      row.forEach((v, i) => line.append(make("td", number(v), text[i] ? "" : "n")));
      body.append(line);
    }
    const top = make("thead");
    top.append(head);
    table.append(top, body);
    place.append(table);
  };
  const quoted = (v) => {
    const text = v === null || v === undefined ? "" : String(v);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (details) => {
    const { header, rows } = content(details);
    return [header, ...rows].map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
  };
  const download = (name, text) => {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  for (const details of document.querySelectorAll("details.table")) {
    details.addEventListener("toggle", () => details.open && fill(details));
    details.querySelector(".csv").addEventListener("click", () => download(`${details.dataset.of}.csv`, csv(details)));
  }

  // ---- panels: one crosshair through all of them
  const figures = [...document.querySelectorAll("[data-panel]")].map((figure) => {
    const data = panels[figure.dataset.panel];
    return { figure, data, svg: figure.querySelector("svg"), cross: figure.querySelector(".cross"), read: figure.querySelector(".read") };
  });
  const steps = [...new Set(figures.flatMap((f) => f.data.series.flatMap((s) => s.x)))].sort((a, b) => a - b);
  const nearest = (sorted, value) => {
    let low = 0, high = sorted.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (sorted[middle] <= value) low = middle; else high = middle;
    }
    return Math.abs(sorted[low] - value) <= Math.abs(sorted[high] - value) ? low : high;
  };
  const toX = (f, step) => {
    const [left, right] = f.data.box, [low, high] = f.data.scale;
    return left + ((step - low) / (high - low)) * (right - left);
  };
  const show = (step) => {
    for (const f of figures) {
      const [, , top, bottom] = f.data.box, x = toX(f, step);
      f.cross.innerHTML = `<line x1="${x}" x2="${x}" y1="${top}" y2="${bottom}"/>`;
      const told = make("span", `step ${step}`);
      const width = steps.length > 1 ? (steps[steps.length - 1] - steps[0]) / 12 : Infinity;
      let count = 0;
      for (const s of f.data.series) {
        const i = nearest(s.x, step);
        if (Math.abs(s.x[i] - step) > width) continue;
        if (++count > 8) continue;
        const dot = make("i", undefined, s.dashed ? "dashed" : "");
        dot.style.setProperty("--run", s.colour);
        const at = s.x[i] === step ? "" : ` (step ${s.x[i]})`;
        const bracket = s.low && typeof s.low[i] === "number" ? ` [${number(s.low[i])}, ${number(s.high[i])}]` : "";
        const entry = make("b");
        entry.append(dot, `${s.name} `, make("em", number(s.y[i])), `${bracket}${at}`);
        told.append(" ", entry);
      }
      if (count > 8) told.append(` and ${count - 8} more`);
      f.read.replaceChildren(told);
    }
  };
  const hide = () => {
    for (const f of figures) {
      f.cross.textContent = "";
      f.read.textContent = "";
    }
  };
  let current = 0;
  for (const f of figures) {
    f.svg.addEventListener("pointermove", (event) => {
      const box = f.svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * f.svg.viewBox.baseVal.width;
      const [left, right] = f.data.box, [low, high] = f.data.scale;
      current = nearest(steps, low + ((x - left) / (right - left)) * (high - low));
      show(steps[current]);
    });
    f.svg.addEventListener("pointerleave", hide);
    f.figure.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move || event.target !== f.figure) return;
      event.preventDefault();
      current = Math.min(steps.length - 1, Math.max(0, current + move));
      show(steps[current]);
    });
    f.figure.addEventListener("blur", hide);
  }

  // ---- points of the frontier
  const tip = document.getElementById("tip");
  for (const point of document.querySelectorAll(".point")) {
    point.addEventListener("pointerenter", () => {
      tip.textContent = point.dataset.tip.split("|").join("\n");
      tip.hidden = false;
      const box = point.querySelector(".reach").getBoundingClientRect(), size = tip.getBoundingClientRect();
      const left = Math.min(box.right + 6, document.documentElement.clientWidth - size.width - 8);
      tip.style.left = `${Math.max(8, left) + scrollX}px`;
      tip.style.top = `${box.top - size.height - 4 + scrollY}px`;
    });
    point.addEventListener("pointerleave", () => { tip.hidden = true; });
  }

  // ---- paper cannot be unfolded
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details.repeat")) details.open = true;
  });

  // ---- copy
  for (const button of document.querySelectorAll(".copy-button")) {
    const label = button.textContent;
    button.addEventListener("click", async () => {
      const source = button.parentElement.querySelector("pre");
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = "Selected: press Ctrl+C";
      }
      setTimeout(() => { button.textContent = label; }, 2000);
    });
  }
})();
