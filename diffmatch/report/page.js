// Draws the figures of a report, whose data stand in the page as JSON. Still pictures stay where there is no WebGL.
(() => {
  "use strict";
  const config = { displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };
  const parse = (plot) => JSON.parse(document.getElementById(plot.dataset.figure).textContent);

  // ---- colours of text and grids: the page's own, light or dark ----
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const theme = (layout) => {
    const change = { "font.color": color("--ink"), "font.family": getComputedStyle(document.body).fontFamily };
    change["hoverlabel.bgcolor"] = color("--panel");
    change["modebar.color"] = color("--line");
    change["modebar.activecolor"] = color("--soft");
    for (const key of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
      change[key + ".gridcolor"] = change[key + ".linecolor"] = color("--line");
      change[key + ".tickfont.color"] = color("--soft");
    }
    return change;
  };
  const drawn = [];
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => Plotly.Plots.resize(entry.target)));
  const draw = (plot, options) => {
    const figure = parse(plot);
    return Plotly.newPlot(plot, figure.data, figure.layout, { ...config, ...options }).then(() => {
      drawn.push(plot);
      sizes.observe(plot);
      return Plotly.relayout(plot, theme(plot.layout));
    });
  };
  const repaint = () => drawn.forEach((plot) => Plotly.relayout(plot, theme(plot.layout)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  addEventListener("beforeprint", repaint);
  addEventListener("afterprint", repaint);

  // ---- meshes side by side: one camera for all ----
  const webgl = () => {
    try {
      const canvas = document.createElement("canvas");
      return Boolean(window.WebGLRenderingContext && (canvas.getContext("webgl2") || canvas.getContext("webgl")));
    } catch {
      return false;
    }
  };
  const link = (plots) => {
    let busy = false;
    const follow = (source) => (event) => {
      const camera = event["scene.camera"];
      if (busy || !camera) return;
      busy = true;
      const others = plots.filter((plot) => plot !== source);
      Promise.all(others.map((plot) => Plotly.relayout(plot, { "scene.camera": camera }))).finally(() => (busy = false));
    };
    for (const plot of plots) {
      plot.on("plotly_relayouting", follow(plot));
      plot.on("plotly_relayout", follow(plot));
    }
  };
  const numbers = (packed) => {
    const bytes = Uint8Array.from(atob(packed.bdata), (letter) => letter.charCodeAt(0));
    const kinds = { i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array };
    return new kinds[packed.dtype](bytes.buffer);
  };
  const edgesOf = (trace) => {
    const [i, j, k] = [trace.i, trace.j, trace.k].map(numbers);
    const [x, y, z] = [trace.x, trace.y, trace.z].map(numbers);
    const seen = new Set();
    const lines = { x: [], y: [], z: [] };
    const add = (a, b) => {
      const key = Math.min(a, b) * x.length + Math.max(a, b);
      if (seen.has(key)) return;
      seen.add(key);
      lines.x.push(x[a], x[b], null);
      lines.y.push(y[a], y[b], null);
      lines.z.push(z[a], z[b], null);
    };
    for (let f = 0; f < i.length; f++) {
      add(i[f], j[f]);
      add(j[f], k[f]);
      add(k[f], i[f]);
    }
    return { type: "scatter3d", mode: "lines", hoverinfo: "skip", showlegend: false, line: { color: "#101828", width: 1 }, ...lines };
  };
  const showEdges = (plot, shown) => {
    if (plot.data.length > 1) return Plotly.restyle(plot, { visible: shown }, [1]);
    return shown ? Plotly.addTraces(plot, edgesOf(parse(plot).data[0])) : null;
  };
  const meshes = (group) => {
    const plots = [...group.querySelectorAll(".plot")];
    const start = plots.map((plot) => parse(plot).layout.scene.camera);
    const tools = group.nextElementSibling;
    return Promise.all(plots.map((plot) => draw(plot, { scrollZoom: true, displayModeBar: false })))
      .then(() => {
        plots.forEach((plot) => plot.parentElement.classList.add("live"));
        tools.classList.add("live");
        link(plots);
        const box = tools.querySelector("input");
        box.addEventListener("change", () => plots.forEach((plot) => showEdges(plot, box.checked)));
        tools.querySelector("button").addEventListener("click", () =>
          plots.forEach((plot, n) => Plotly.relayout(plot, { "scene.camera": start[n] })));
      });
  };

  document.querySelectorAll(".chart > .plot").forEach((plot) => draw(plot, {}));
  if (webgl()) document.querySelectorAll(".meshes").forEach(meshes);
  else document.querySelectorAll(".no-webgl").forEach((note) => (note.hidden = false));
})();
