"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const charts = [...document.querySelectorAll(".chart")];

for (const chart of charts) {
  const figure = figures[chart.id.slice("chart-".length)];
  Plotly.newPlot(chart, figure.data, figure.layout, {responsive: true, displayModeBar: false});
}

const choices = document.querySelector("form.choices");

function choose() {
  const picked = new FormData(choices);
  const names = new Set([...choices.elements].map((element) => element.name));
  const isPicked = ([name, value]) => !names.has(name) || picked.getAll(name).includes(value);
  for (const chart of charts) {
    if (!chart.data.some((trace) => trace.meta)) continue;
    const visible = chart.data.map((trace) => Object.entries(trace.meta ?? {}).every(isPicked));
    const yaxis = chart.layout.meta?.metric[picked.get("metric")];
    Plotly.update(chart, {visible}, yaxis ? {yaxis: structuredClone(yaxis)} : {});
  }
}

choices?.addEventListener("change", choose);

const details = [...document.querySelectorAll("details.printed")];
const closed = new Set();

addEventListener("beforeprint", () => {
  for (const element of details) {
    if (!element.open) closed.add(element);
    element.open = true;
  }
  document.documentElement.classList.add("printing");
  for (const chart of charts) Plotly.relayout(chart, {width: chart.clientWidth});
});

addEventListener("afterprint", () => {
  for (const element of closed) element.open = false;
  closed.clear();
  document.documentElement.classList.remove("printing");
  for (const chart of charts) Plotly.relayout(chart, {width: null, autosize: true});
});

function select(element) {
  const range = document.createRange();
  range.selectNodeContents(element);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}

for (const button of document.querySelectorAll(".code button")) {
  button.addEventListener("click", async () => {
    const code = button.closest(".code").querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      select(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
