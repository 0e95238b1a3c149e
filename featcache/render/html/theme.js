"use strict";
try {
  const kept = localStorage.getItem("featcache-theme");
  if (kept) document.documentElement.dataset.theme = kept;
} catch {
  // Storage can be forbidden for files; the page then follows the system.
}
