// The page's scope as its address holds it.

// The address of this page with changed parameters; null drops one.
export function here(changes) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null) query.delete(name);
    else query.set(name, value);
  }
  return `${location.pathname}?${query}`;
}

// Shows a window between two times, in seconds since 1970.
export function zoom(fromS, toS) {
  const changes = { from: Math.floor(fromS), to: Math.ceil(toS), range: null, page: null };
  location.assign(here(changes));
}

// What somebody drags over on a chart's time axis becomes the window of the page. `secondsOf`: of
// a place on the axis.
export function zoomByDragging(element, secondsOf) {
  if (element.hasZoom) return;
  element.hasZoom = true;
  element.on("plotly_relayout", (change) => {
    const from = change["xaxis.range[0]"];
    if (from !== undefined) zoom(secondsOf(from), secondsOf(change["xaxis.range[1]"]));
  });
}
