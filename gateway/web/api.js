// What the page reads over HTTP; everything else goes over the wire.

/**
 * @param {string} path
 * @returns {Promise<any>}
 */
async function getJson(path) {
  const response = await fetch(path, { headers: { accept: "application/json" } });
  if (!response.ok) throw new Error(`${path}: HTTP ${response.status}`);
  return response.json();
}

/** @returns {Promise<import("./store.js").Persona[]>} */
export async function getPersonas() {
  return (await getJson("/v1/personas")).data;
}

/** @returns {Promise<import("./store.js").ChatSummary[]>} newest first */
export async function getChats() {
  return (await getJson("/v1/chats")).data;
}

/** @returns {Promise<import("./store.js").Backend[]>} the default one among them */
export async function getBackends() {
  return (await getJson("/v1/backends")).data;
}
