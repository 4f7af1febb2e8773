// What this window keeps over a reload of the page: JSON by key. If the browser's storage is off or full, nothing is kept.

/** Return the kept value of a key, or another one if there is none. */
window.text2segKept = (key, otherwise = null) => {
  try {
    return JSON.parse(sessionStorage.getItem(key)) ?? otherwise;
  } catch (error) {
    console.warn(`text2seg cannot read what this window has kept as ${key}`, error);
    return otherwise;
  }
};

/** Keep a value. */
window.text2segKeep = (key, value) => {
  try {
    sessionStorage.setItem(key, JSON.stringify(value));
  } catch (error) {
    console.warn(`text2seg cannot keep ${key} over a reload`, error);
  }
};

// The server has forgotten a page that was left and comes back from the browser's cache, so it is loaded again.
addEventListener("pageshow", ({ persisted }) => { if (persisted) location.reload(); });
