"use strict";
// Draws the figures whose descriptions stand in the page, in the page's own colours, and lets tables be sorted.
(function () {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const inks = { light: ["#1d2733", "#dfe4ea", "#ffffff"], dark: ["#e6ebf0", "#2c3642", "#171f28"] };

  function dress(layout, kind) {
    const [ink, line, card] = inks[kind];
    const dressed = Object.assign({}, layout, {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, sans-serif", size: 12 },
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink } },
    });
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis/.test(key)) {
        dressed[key] = Object.assign({ gridcolor: line, zerolinecolor: line, automargin: true }, layout[key]);
      }
    }
    return dressed;
  }

  const drawn = [];
  for (const place of document.querySelectorAll(".plot")) {
    const figure = JSON.parse(place.querySelector("script").textContent);
    place.textContent = "";
    Plotly.newPlot(place, figure.data, dress(figure.layout, dark.matches ? "dark" : "light"), {
      responsive: true,
      displaylogo: false,
      displayModeBar: false,
    });
    drawn.push([place, figure.layout]);
  }
  const redress = (kind) => drawn.forEach(([place, layout]) => Plotly.relayout(place, dress(layout, kind)));
  dark.addEventListener("change", () => redress(dark.matches ? "dark" : "light"));
  window.addEventListener("beforeprint", () => redress("light"));
  window.addEventListener("afterprint", () => redress(dark.matches ? "dark" : "light"));

  const value = (cell) => {
    const number = parseFloat(cell.dataset.value ?? cell.textContent.replace(/[, ]/g, ""));
    return Number.isNaN(number) ? null : number;
  };
  for (const table of document.querySelectorAll("table.sorts")) {
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const rising = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((one, other) => {
          const [a, b] = [one, other].map((row) => value(row.cells[column]));
          const [s, t] = [one, other].map((row) => row.cells[column].textContent);
          // What has no number comes last, whichever way.
          if (a === null || b === null) return a === b ? (rising ? 1 : -1) * s.localeCompare(t) : a === null ? 1 : -1;
          return rising ? a - b : b - a;
        });
        table.tBodies[0].append(...rows);
      });
    });
  }
})();
