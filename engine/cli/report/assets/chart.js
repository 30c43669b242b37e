"use strict";
// Curves: drawn for the width that there is, looked at closer by dragging, the wheel or the keyboard. All charts show the
// same steps.
const Charts = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const EDGE = { left: 62, right: 14, top: 10, bottom: 28 };
  const state = { charts: [], zoom: null, log: false, smooth: 0, off: new Set(), dragging: false };

  const make = (name, attributes, parent) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (parent) parent.append(element);
    return element;
  };

  const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  function write(value, unit) {
    if (!Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (unit === "bytes" || (unit === "count" && size >= 1e4)) {
      const steps = ["", " k", " M", " G", " T"];
      const at = Math.min(steps.length - 1, size < 1000 ? 0 : Math.floor(Math.log10(size) / 3));
      const digits = size / 1000 ** at < 99.95 && at > 0 ? 1 : 0;
      return (value / 1000 ** at).toFixed(digits) + steps[at] + (unit === "bytes" ? (at ? "B" : " B") : "");
    }
    if (size === 0) return "0";
    if (size < 1e-3) return value.toExponential(3).replace(/\.?0+e/, "e");
    if (size >= 1000) return grouped.format(value);
    return String(Number(value.toPrecision(4)));
  }

  // Round numbers between two, about so many.
  function ticks(low, high, about) {
    const rough = (high - low) / about || 1;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((times) => times * unit).find((step) => step >= rough * 0.999);
    const all = [];
    for (let nth = Math.ceil(low / step); nth <= Math.floor(high / step) && all.length < 30; nth++) all.push(nth * step);
    return all;
  }

  function powers(low, high) {
    const all = [];
    for (let of = Math.floor(Math.log10(low)); of <= Math.ceil(Math.log10(high)); of++) {
      for (const times of high / low > 200 ? [1] : high / low > 8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]) {
        const at = times * 10 ** of;
        if (at >= low && at <= high) all.push(at);
      }
    }
    return all;
  }

  // An exponential mean over steps; at its beginning it is not drawn towards zero.
  function smoothed(values, share) {
    if (!share) return values;
    let sum = 0;
    let weight = 0;
    return values.map((value) => {
      sum = share * sum + (1 - share) * value;
      weight = share * weight + (1 - share);
      return sum / weight;
    });
  }

  function range() {
    let [low, high] = [Infinity, -Infinity];
    for (const chart of state.charts) {
      for (const { curve } of chart.series) {
        if (curve.x.length) {
          low = Math.min(low, curve.x[0]);
          high = Math.max(high, curve.x[curve.x.length - 1]);
        }
      }
    }
    return low < high ? [low, high] : [low - 1, low + 1];
  }

  // The part of a curve between two steps, and a point on either side so that its line reaches the edge.
  function part(x, from, to) {
    let first = x.findIndex((step) => step >= from);
    if (first < 0) first = x.length;
    let last = first;
    while (last < x.length && x[last] <= to) last++;
    return [Math.max(0, first - 1), Math.min(x.length, last + 1)];
  }

  // What comes in runs of steps that are as far from each other, in tenths, as steps.
  function unpacked(curve) {
    if (!curve.runs) return curve;
    const x = curve.runs.flatMap(([first, far, count]) => Array.from({ length: count }, (_, nth) => (first + nth * far) / 10));
    return { ...curve, x };
  }

  // More values than there is room for become their means and extremes, so that a spike is still seen.
  function thinned(one, most) {
    if (one.x.length <= 2 * most) return one;
    const size = Math.ceil(one.x.length / most);
    const over = (values, of) => Array.from({ length: Math.ceil(values.length / size) }, (_, nth) => of(values.slice(nth * size, (nth + 1) * size)));
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    return {
      ...one, x: over(one.x, mean), y: over(one.y, mean), soft: over(one.soft, mean),
      low: over(one.low || one.y, (values) => Math.min(...values)), high: over(one.high || one.y, (values) => Math.max(...values)),
    };
  }

  function draw(chart) {
    const figure = chart.figure;
    const plot = figure.querySelector(".plot");
    const wide = Math.max(240, Math.round(plot.clientWidth) || 640);
    const high = figure.classList.contains("first") ? 300 : 210;
    const log = state.log && chart.log;
    const [from, to] = state.zoom || range();
    const series = chart.series
      .map((one, nth) => ({ ...one, nth }))
      .filter((one) => !state.off.has(chart.id + "/" + one.name))
      .map((one) => {
        const [a, b] = part(one.curve.x, from, to);
        const of = (values) => (values ? values.slice(a, b) : null);
        const y = of(one.curve.y);
        const soft = smoothed(one.curve.y, one.dashed ? 0 : state.smooth).slice(a, b);
        return thinned({ ...one, x: of(one.curve.x), y, soft, low: of(one.curve.low), high: of(one.curve.high) }, wide / 2);
      });
    let [bottom, top] = [Infinity, -Infinity];
    for (const { y, low, high } of series) {
      for (const value of [...(low || y), ...(high || y)]) {
        if (log && value <= 0) continue;
        bottom = Math.min(bottom, value);
        top = Math.max(top, value);
      }
    }
    if (!(bottom <= top)) [bottom, top] = log ? [0.1, 1] : [0, 1];
    if (log) {
      [bottom, top] = top > bottom ? [bottom / 1.05, top * 1.05] : [bottom / 2, top * 2];
    } else {
      const room = top > bottom ? 0.05 * (top - bottom) : 0.1 * Math.max(1, Math.abs(bottom));
      [bottom, top] = [bottom >= 0 ? Math.max(0, bottom - room) : bottom - room, top + room];
    }
    const [x0, x1, y0, y1] = [EDGE.left, wide - EDGE.right, high - EDGE.bottom, EDGE.top];
    const on = log ? Math.log : (value) => value;
    const px = (step) => x0 + ((step - from) / (to - from)) * (x1 - x0);
    const py = (value) => y0 + ((on(log ? Math.max(value, bottom) : value) - on(bottom)) / (on(top) - on(bottom))) * (y1 - y0);

    const focused = document.activeElement && plot.contains(document.activeElement);
    const label = figure.querySelector("svg")?.getAttribute("aria-label") || chart.title;
    const svg = make("svg", { viewBox: `0 0 ${wide} ${high}`, height: high, tabindex: 0, role: "img", "aria-label": label });
    const clip = make("clipPath", { id: "clip-" + chart.id }, svg);
    make("rect", { x: x0, y: 0, width: x1 - x0, height: y0 + 2 }, clip);
    for (const tick of log ? powers(bottom, top) : ticks(bottom, top, 4)) {
      make("line", { class: "grid", x1: x0, x2: x1, y1: py(tick), y2: py(tick) }, svg);
      make("text", { class: "tick", x: x0 - 8, y: py(tick) + 3.5, "text-anchor": "end" }, svg).textContent = write(tick, chart.unit);
    }
    for (const tick of ticks(from, to, Math.max(2, wide / 110)).filter((tick) => Number.isInteger(tick))) {
      const text = make("text", { class: "tick", x: px(tick), y: high - 8, "text-anchor": "middle" }, svg);
      text.textContent = grouped.format(tick);
    }
    const body = make("g", { "clip-path": `url(#clip-${chart.id})` }, svg);
    const line = (xs, ys) => xs.map((step, i) => `${i ? "L" : "M"}${px(step).toFixed(1)} ${py(ys[i]).toFixed(1)}`).join("");
    for (const one of series) {
      const color = " s" + (one.color % 6);
      if (one.low) {
        const back = line([...one.x].reverse(), [...one.low].reverse()).replace("M", "L");
        make("path", { class: "band" + color, d: line(one.x, one.high) + back + "Z" }, body);
      }
      if (state.smooth && !one.dashed) make("path", { class: "line raw" + color, d: line(one.x, one.y) }, body);
      make("path", { class: "line" + color + (one.dashed ? " dashed" : ""), d: line(one.x, one.soft) }, body);
      // Of few values, as those of a validation, each is seen.
      if (one.dashed && one.x.length <= 60 && one.x.length < series[0].x.length) {
        one.x.forEach((step, i) => make("circle", { class: "dot" + color, r: 3.2, cx: px(step), cy: py(one.soft[i]) }, body));
      }
    }
    plot.querySelector("svg")?.remove();
    plot.prepend(svg);
    if (focused) svg.focus({ preventScroll: true });
    chart.view = { svg, plot, body, series, px, py, x0, x1, y0, from, to, step: (at) => from + ((at - x0) / (x1 - x0)) * (to - from) };
    listen(chart);
    if (chart.hover !== undefined) point(chart, chart.hover);
  }

  function hide(chart) {
    chart.figure.querySelector(".tipbox")?.remove();
    chart.view.svg.querySelectorAll(".cursor, .mark").forEach((old) => old.remove());
  }

  // Every curve's value at the step that is nearest.
  function point(chart, step) {
    hide(chart);
    const { svg, plot, series, px, py, y0, x1 } = chart.view;
    const near = series.flatMap((one) => {
      let best = -1;
      one.x.forEach((at, i) => {
        if (best < 0 || Math.abs(at - step) < Math.abs(one.x[best] - step)) best = i;
      });
      return best < 0 ? [] : [{ one, at: one.x[best], value: one.y[best], shown: one.soft[best] }];
    });
    if (!near.length) return;
    const at = near.reduce((a, b) => (Math.abs(a.at - step) <= Math.abs(b.at - step) ? a : b)).at;
    make("line", { class: "cursor", x1: px(at), x2: px(at), y1: EDGE.top, y2: y0 }, svg);
    const box = document.createElement("div");
    box.className = "tipbox";
    const title = document.createElement("b");
    title.textContent = "Step " + grouped.format(at);
    box.append(title);
    for (const { one, at: own, value, shown } of near) {
      make("circle", { class: `dot mark s${one.color % 6}`, r: 4, cx: px(own), cy: py(shown) }, svg);
      const row = document.createElement("div");
      const [name, number] = [document.createElement("span"), document.createElement("span")];
      name.textContent = one.name + (own === at ? "" : ` (${grouped.format(own)})`);
      number.textContent = write(value, chart.unit);
      row.append(name, number);
      box.append(row);
    }
    plot.append(box);
    const scale = plot.clientWidth / (x1 + EDGE.right);
    const left = px(at) * scale;
    box.style.left = Math.max(0, left + 12 + box.offsetWidth > plot.clientWidth ? left - 12 - box.offsetWidth : left + 12) + "px";
    chart.at = at;
  }

  function zoom(to) {
    const [low, high] = range();
    const least = Math.min(high - low, 2);
    if (to) {
      const size = Math.max(to[1] - to[0], least);
      const first = Math.min(Math.max(to[0], low), high - size);
      to = size >= (high - low) * 0.999 ? null : [Math.max(low, first), Math.min(high, first + size)];
    }
    state.zoom = to;
    const reset = document.getElementById("reset");
    if (reset) reset.disabled = !to;
    redraw();
  }

  function scale(chart, about, by) {
    const { from, to } = chart.view;
    zoom([about - (about - from) * by, about + (to - about) * by]);
  }

  function listen(chart) {
    const { svg } = chart.view;
    const place = (event) => {
      const box = svg.getBoundingClientRect();
      return ((event.clientX - box.left) / box.width) * (chart.view.x1 + EDGE.right);
    };
    let begin = null;
    let rect = null;
    const done = () => {
      begin = null;
      state.dragging = false;
      rect?.remove();
    };
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      begin = place(event);
      state.dragging = true;
      if (event.pointerType !== "touch") svg.setPointerCapture(event.pointerId);
      rect = make("rect", { class: "drag", x: begin, y: EDGE.top, width: 0, height: chart.view.y0 - EDGE.top }, svg);
    });
    svg.addEventListener("pointermove", (event) => {
      const at = place(event);
      if (begin !== null) {
        rect.setAttribute("x", Math.min(begin, at));
        rect.setAttribute("width", Math.abs(at - begin));
      }
      chart.hover = chart.view.step(at);
      point(chart, chart.hover);
    });
    svg.addEventListener("pointerup", (event) => {
      const [a, b] = [begin, place(event)];
      done();
      if (a !== null && Math.abs(a - b) > 6) zoom([chart.view.step(Math.min(a, b)), chart.view.step(Math.max(a, b))]);
    });
    svg.addEventListener("pointercancel", done);
    svg.addEventListener("pointerleave", () => {
      delete chart.hover;
      hide(chart);
    });
    svg.addEventListener("dblclick", () => zoom(null));
    svg.addEventListener("blur", () => hide(chart));
    svg.addEventListener("wheel", (event) => {
      // Without Ctrl the wheel is the page's.
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      scale(chart, chart.view.step(place(event)), event.deltaY > 0 ? 1.25 : 0.8);
    }, { passive: false });
    svg.addEventListener("keydown", (event) => keys(chart, event));
  }

  function keys(chart, event) {
    const { from, to, series } = chart.view;
    const [middle, size] = [(from + to) / 2, to - from];
    const move = (way) => {
      if (event.shiftKey || !series.length) return zoom([from + way * size * 0.2, to + way * size * 0.2]);
      const steps = series[0].x;
      const now = chart.at ?? (way > 0 ? from : to);
      const next = way > 0 ? steps.find((step) => step > now) : steps.findLast((step) => step < now);
      point(chart, next ?? now);
    };
    const does = {
      "+": () => scale(chart, chart.at ?? middle, 0.7), "=": () => scale(chart, chart.at ?? middle, 0.7),
      "-": () => scale(chart, middle, 1 / 0.7), "0": () => zoom(null), Home: () => zoom(null), Escape: () => zoom(null),
      ArrowLeft: () => move(-1), ArrowRight: () => move(1),
    }[event.key];
    if (!does || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    does();
  }

  // The names of the curves switch them off and on.
  function switches(chart) {
    chart.figure.querySelectorAll(".keys li").forEach((item, nth) => {
      const one = chart.series[nth];
      if (!one || item.querySelector("button")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...item.childNodes);
      item.append(button);
      const id = chart.id + "/" + one.name;
      const show = () => {
        button.setAttribute("aria-pressed", String(!state.off.has(id)));
        item.toggleAttribute("data-off", state.off.has(id));
      };
      show();
      button.addEventListener("click", () => {
        if (!state.off.delete(id)) state.off.add(id);
        show();
        draw(chart);
      });
    });
  }

  function redraw() {
    state.charts.forEach(draw);
  }

  // Takes curves, also instead of those that were there.
  function take(charts) {
    const figures = new Map([...document.querySelectorAll("[data-chart]")].map((figure) => [figure.dataset.chart, figure]));
    const old = new Map(state.charts.map(({ id, at, hover }) => [id, { at, hover }]));
    state.charts = charts
      .filter((chart) => figures.has(chart.id))
      .map((chart) => ({
        ...chart, ...old.get(chart.id), figure: figures.get(chart.id),
        series: chart.series.map((one) => ({ ...one, curve: unpacked(one.curve) })),
      }));
    state.charts.forEach(switches);
    // What comes while somebody drags is drawn when that is done.
    if (!state.dragging || !state.charts.every((chart) => chart.figure.querySelector("svg"))) redraw();
    const tools = document.getElementById("tools");
    if (tools && state.charts.length) tools.hidden = false;
  }

  return { state, take, zoom, redraw };
})();
