"use strict";
(() => {
  // Tables sort by the exact value of each cell; a second click turns the order around.
  const keyOf = (row, column) => {
    const cell = row.cells[column], value = cell.dataset.value;
    if (cell.classList.contains("number")) {
      const found = value === "inf" ? Infinity : value === "-inf" ? -Infinity : Number(value);
      return found;
    }
    return value;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  const missing = (value) => typeof value === "number" && Number.isNaN(value);
  for (const table of document.querySelectorAll("table.sorts")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const rows = [...table.tBodies[0].rows];
        const numbers = rows.some((row) => row.cells[column].classList.contains("number"));
        const before = head.getAttribute("aria-sort");
        const up = before === null ? !numbers : before === "descending";
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        rows.sort((left, right) => {
          const a = keyOf(left, column), b = keyOf(right, column);
          if (missing(a) || missing(b)) return missing(a) - missing(b);
          return up ? compare(a, b) : compare(b, a);
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  // Dots answer: the nearest one to the pointer says which pair of examples it is.
  const tip = document.getElementById("tip"), REACH = 18;
  const digits = (value) => Number(value.toPrecision(4)).toString().replace("-", "−");
  for (const figure of document.querySelectorAll("figure.dots")) {
    const dots = JSON.parse(figure.querySelector("script").textContent);
    const svg = figure.querySelector("svg"), ring = document.createElement("span");
    ring.className = "ring";
    ring.hidden = true;
    figure.append(ring);
    const hide = () => { tip.hidden = ring.hidden = true; };
    const answer = (event) => {
      const box = svg.getBoundingClientRect(), scale = box.width / dots.size[0];
      const x = event.clientX - box.left, y = event.clientY - box.top;
      let best = -1, nearest = REACH * REACH;
      for (let n = 0; n < dots.x.length; n += 1) {
        const away = (dots.x[n] * scale - x) ** 2 + (dots.y[n] * scale - y) ** 2;
        if (away < nearest) { nearest = away; best = n; }
      }
      if (best < 0) { hide(); return; }
      tip.textContent = `training example ${dots.train[best]}\ntest example ${dots.test[best]}\n` +
        `${dots.names[0]}: ${digits(dots.a[best])}\n${dots.names[1]}: ${digits(dots.b[best])}`;
      tip.hidden = ring.hidden = false;
      ring.style.left = `${dots.x[best] * scale}px`;
      ring.style.top = `${dots.y[best] * scale}px`;
      const place = tip.getBoundingClientRect();
      const left = Math.min(event.clientX + 14, window.innerWidth - place.width - 4);
      const above = event.clientY - place.height - 12;
      tip.style.left = `${Math.max(4, left)}px`;
      tip.style.top = `${above > 4 ? above : event.clientY + 16}px`;
    };
    svg.addEventListener("pointermove", answer);
    svg.addEventListener("pointerdown", answer);
    svg.addEventListener("pointerleave", hide);
  }
})();
