// The live connection: a WebSocket carries hints, `refresh` fetches the truth over HTTP.
//
// Rules: a hint, a reconnect and a tab that comes back all lead to the same refresh, which asks for
// the whole truth: so a lost hint, whatever the gap in `seq`, costs only time.
// At most one a second, at least one each ten seconds, also while the socket is down; none while
// the tab is hidden.

const LEAST_BETWEEN_MS = 1000;
const MOST_BETWEEN_MS = 10_000;
const RETRY_MS = { first: 1000, most: 30_000 };
const SIGNED_OUT = 4401;

export class Live {
  // refresh: async (seq) => age of the answer in ms, throws when the server does not answer; seq:
  // newest hint or null
  // zone: in which `onState` names a time, such as "Europe/Berlin"
  // onState: ({ state: "live" | "polling" | "down", words }) => void
  // onSignedOut: () => void
  constructor({ path, zone, refresh, onState, onSignedOut }) {
    Object.assign(this, { path, refresh, onState, onSignedOut });
    this.clock = new Intl.DateTimeFormat("en-GB", {
      hour: "2-digit", minute: "2-digit", timeZone: zone || "UTC",
    });
    this.retryMs = RETRY_MS.first;
    this.seq = null;
    this.truthAt = Date.now(); // the page came with its numbers
    this.askedAt = Date.now();
    this.downSince = null;
    this.isOpen = false;
    this.isWanted = false;
    this.isBusy = false;
  }

  start() {
    this.connect();
    setInterval(() => this.tick(), 500);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.want();
    });
    addEventListener("online", () => this.reconnectNow());
  }

  connect() {
    const url = new URL(this.path, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    this.socket = socket;
    socket.addEventListener("message", (event) => this.hear(JSON.parse(event.data)));
    socket.addEventListener("close", (event) => this.lose(event.code));
  }

  hear(message) {
    if (message.hello) {
      this.isOpen = true;
      this.retryMs = RETRY_MS.first;
      this.seq = null; // hints sent meanwhile are lost: the refresh brings what they meant
    } else {
      if (this.seq !== null && message.seq <= this.seq) return; // late: newer is fetched already
      this.seq = message.seq;
    }
    this.want();
  }

  lose(code) {
    this.isOpen = false;
    if (code === SIGNED_OUT) return this.onSignedOut();
    this.downSince ??= new Date();
    const jitter = 0.75 + Math.random() / 2; // so that not all pages come back at the same moment
    this.retry = setTimeout(() => this.connect(), this.retryMs * jitter);
    this.retryMs = Math.min(this.retryMs * 2, RETRY_MS.most);
    this.tell();
  }

  reconnectNow() {
    if (this.isOpen || this.socket.readyState === WebSocket.CONNECTING) return;
    clearTimeout(this.retry);
    this.retryMs = RETRY_MS.first;
    this.connect();
  }

  want() {
    this.isWanted = true;
    this.tick();
  }

  async tick() {
    const now = Date.now();
    const isDue = this.isWanted ? now - this.askedAt >= LEAST_BETWEEN_MS
                                : now - this.askedAt >= MOST_BETWEEN_MS;
    if (isDue && !this.isBusy && !document.hidden) {
      this.isBusy = true;
      this.isWanted = false;
      this.askedAt = now;
      try {
        const ageMs = await this.refresh(this.seq);
        this.truthAt = Date.now() - ageMs;
        if (this.isOpen) this.downSince = null;
      } catch {
        this.downSince ??= new Date();
        this.isWanted = this.isOpen;
      } finally {
        this.isBusy = false;
      }
    }
    this.tell();
  }

  tell() {
    const ageS = Math.max(Math.round((Date.now() - this.truthAt) / 1000), 0);
    const isFresh = ageS * 1000 < MOST_BETWEEN_MS + 5000;
    if (this.downSince === null) this.onState({ state: "live", words: `live ${ageS} s ago` });
    else if (this.truthAt > this.downSince.getTime() && isFresh) {
      this.onState({ state: "polling", words: `each 10 s, ${ageS} s ago` });
    } else {
      const since = this.clock.format(this.downSince);
      this.onState({ state: "down", words: `not live since ${since}, retrying` });
    }
  }
}
