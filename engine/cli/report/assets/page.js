// The page: its colours, its controls, what is opened by a link, and paper.
const Page = (() => {
  const root = document.documentElement;

  function theme() {
    const button = document.getElementById("theme");
    const names = { "": "Theme: system", light: "Theme: light", dark: "Theme: dark" };
    const keep = (name) => {
      // A file that was opened from a disk may have no storage.
      try { localStorage.setItem("flow-theme", name); } catch { /* then it is not kept */ }
    };
    const set = (name) => {
      if (name) root.dataset.theme = name; else delete root.dataset.theme;
      button.textContent = names[name];
    };
    let now = "";
    try { now = localStorage.getItem("flow-theme") || ""; } catch { /* then it is the system's */ }
    set(now in names ? now : "");
    button.hidden = false;
    button.addEventListener("click", () => {
      const next = { "": "dark", dark: "light", light: "" }[root.dataset.theme || ""];
      keep(next);
      set(next);
    });
  }

  // The controls of the charts; the part that they are in may be a new one.
  function tools() {
    const [log, smooth, reset] = ["log", "smooth", "reset"].map((id) => document.getElementById(id));
    if (!log || log.dataset.ready) return;
    log.dataset.ready = "yes";
    log.checked = Charts.state.log;
    smooth.value = Charts.state.smooth;
    log.addEventListener("change", () => {
      Charts.state.log = log.checked;
      Charts.redraw();
    });
    smooth.addEventListener("input", () => {
      Charts.state.smooth = Number(smooth.value);
      document.getElementById("smoothed").textContent = smooth.value;
      Charts.redraw();
    });
    reset.addEventListener("click", () => Charts.zoom(null));
  }

  function open() {
    const id = decodeURIComponent(location.hash.slice(1));
    const target = id && document.getElementById(id);
    if (target instanceof HTMLDetailsElement) target.open = true;
  }

  function begin() {
    theme();
    tools();
    open();
    addEventListener("hashchange", open);
    // Also where the link leads to where one is already.
    document.addEventListener("click", (event) => {
      if (event.target.closest && event.target.closest('a[href^="#"]')) setTimeout(open);
    });
    let wide = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth !== wide) Charts.redraw();
      wide = innerWidth;
    });
    let closed = [];
    addEventListener("beforeprint", () => {
      closed = [...document.querySelectorAll("details.stage:not([open])")];
      closed.forEach((details) => { details.open = true; });
    });
    addEventListener("afterprint", () => closed.forEach((details) => { details.open = false; }));
    Charts.take(JSON.parse(document.getElementById("data").textContent).charts);
  }

  return { begin, tools };
})();
Page.begin();
