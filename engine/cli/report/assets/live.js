// A page that goes on: takes the parts that have changed, without a reload, and leaves what a reader opened, chose or
// scrolled as it was.
(() => {
  const address = document.documentElement.dataset.events;
  if (!address) return;
  const link = document.getElementById("link");

  function replace(id, html) {
    const section = document.getElementById(id);
    if (!section) return;
    const open = [...section.querySelectorAll("details[open]")].map((details) => details.id).filter(Boolean);
    const focus = section.contains(document.activeElement) ? document.activeElement.id : "";
    const scrolled = new Map([...section.querySelectorAll("pre[id], .scroll")].map((of, nth) => [
      of.id || nth, { top: of.scrollTop, left: of.scrollLeft, end: of.scrollTop + of.clientHeight >= of.scrollHeight - 4 },
    ]));
    section.innerHTML = html;
    section.hidden = !html;
    document.querySelector(`nav a[href="#${id}"]`)?.toggleAttribute("hidden", !html);
    for (const id of open) {
      const details = document.getElementById(id);
      if (details) details.open = true;
    }
    [...section.querySelectorAll("pre[id], .scroll")].forEach((of, nth) => {
      const was = scrolled.get(of.id || nth);
      // Who reads the end of a log goes on doing so.
      if (of.tagName === "PRE" && (!was || was.end)) of.scrollTop = of.scrollHeight;
      else if (was) [of.scrollTop, of.scrollLeft] = [was.top, was.left];
    });
    if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
  }

  let charts = JSON.parse(document.getElementById("data").textContent).charts;
  const source = new EventSource(address);
  source.addEventListener("open", () => { link.textContent = "live"; });
  source.addEventListener("section", (event) => {
    const { id, html } = JSON.parse(event.data);
    replace(id, html);
    if (id === "training") {
      Page.tools();
      Charts.take(charts);
    }
  });
  source.addEventListener("charts", (event) => {
    charts = JSON.parse(event.data).charts;
    Charts.take(charts);
  });
  source.addEventListener("title", (event) => { document.title = JSON.parse(event.data); });
  // It has ended, or is no more: nothing will come.
  source.addEventListener("end", (event) => {
    source.close();
    link.textContent = JSON.parse(event.data);
  });
  source.addEventListener("error", () => { link.textContent = "lost: trying again"; });
})();
