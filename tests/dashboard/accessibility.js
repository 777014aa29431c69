// What can be measured of reading and reaching: names, labels, structure, contrast. Returns faults.
() => {
  const faults = [];
  const visible = (element) => element.checkVisibility({ visibilityProperty: true });
  const say = (element, what) => faults.push(`${what}: ${element.outerHTML.slice(0, 120)}`);

  if (!document.documentElement.lang) faults.push("the page has no language");
  if (document.querySelectorAll("h1").length !== 1) faults.push("not exactly one h1");
  if (document.querySelectorAll("main").length !== 1) faults.push("not exactly one main");
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  ids.filter((id, i) => ids.indexOf(id) !== i).forEach((id) => faults.push(`id twice: ${id}`));
  for (const input of document.querySelectorAll("input:not([type=hidden]), select")) {
    if (!input.labels?.length && !input.ariaLabel) say(input, "no label");
  }
  for (const element of document.querySelectorAll("a[href], button, summary")) {
    const name = element.textContent.trim() || element.getAttribute("aria-label");
    if (!name) say(element, "no name");
    const widget = element.closest("[role=tree]"); // arrows walk inside, one item takes the focus
    const stop = widget?.querySelector("[role=treeitem][tabindex='0']") ?? element;
    if (visible(element) && stop.tabIndex < 0) say(element, "not reachable");
  }
  for (const image of document.querySelectorAll("svg:not(svg svg), img, [role=img]")) {
    if (image.closest("[aria-hidden=true], .js-plotly-plot, #js-plotly-tester")) continue;
    if (image.parentElement.closest("[role=img]")) continue; // part of a picture that has words
    if (!image.getAttribute("aria-label") && !image.alt) say(image, "no words for a picture");
  }
  for (const cell of document.querySelectorAll("th")) {
    if (!cell.scope) say(cell, "no scope");
  }

  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, under) => ({
    r: top.r * top.a + under.r * (1 - top.a),
    g: top.g * top.a + under.g * (1 - top.a),
    b: top.b * top.a + under.b * (1 - top.a),
    a: 1,
  });
  const background = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      layers.push(parse(getComputedStyle(at).backgroundColor));
      if (layers.at(-1).a === 1) break;
    }
    return layers.reduceRight((under, top) => over(top, under), { r: 255, g: 255, b: 255, a: 1 });
  };
  const luminance = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map((c) => {
      const part = c / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !visible(element)) continue;
    if (element.closest("script, style, svg, [aria-disabled], .sr, .skip, option")) continue;
    const under = background(element);
    const [one, two] = [over(parse(getComputedStyle(element).color), under), under].map(luminance);
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) say(element, `contrast ${ratio.toFixed(2)}`);
  }
  return faults;
}
