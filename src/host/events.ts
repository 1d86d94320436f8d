// host/events.ts: who follows what happens on the host: first what was, then what comes, without a gap or a repetition.
//
// Events are added by works (transaction.ts) and numbered without a gap. A follower is a position: it reads what is
// behind it, page by page, and waits when there is nothing. The latest events are in memory, once for all followers;
// whoever lags behind them reads the database. So one that doesn't read costs a page, however long it sleeps; if what
// it would read next was removed meanwhile it goes on with the oldest that is left.

import type { EventView } from './operator.ts'
import type { Store } from './store.ts'

/** Events read at once. */
const PAGE = 256
/** The latest events, kept in memory for all followers: at least so many, at most twice. */
const RECENT = 1024

/** What a follower wants: those after `since`, of one project; `follow`: those to come, too, until `signal`. */
export type Follow = { readonly since?: number | undefined; readonly follow: boolean
  readonly project?: string | undefined; readonly signal?: AbortSignal | undefined }

/** The events of one store. */
export class EventLog {
  readonly #store: Store
  #last: number
  #recent: EventView[] = []
  readonly #waiters = new Set<() => void>()

  constructor(store: Store) {
    this.#store = store
    this.#last = store.lastEvent()
    store.onEvents((events) => this.#deliver(events))
  }

  /** The number of the latest event; 0 if there was none. */
  get last(): number { return this.#last }

  /**
   * Events in order. One that waits ends with `signal` only. A `since` that is yet to come is taken for now: the state
   * may have gone back to a backup.
   */
  async *follow({ since = 0, follow, project, signal }: Follow): AsyncGenerator<EventView, void, void> {
    let at = Math.min(since, this.#last)
    const end = follow ? Infinity : this.#last
    const isOver = (): boolean => signal?.aborted === true
    while (!isOver() && at < end) {
      const { events, next } = this.#page(at, project)
      for (const event of events) {
        if (event.seq > end || isOver()) return
        yield event
      }
      at = next
      if (at === this.#last && follow) await this.#more(signal)
    }
  }

  // Events behind a position, and the position behind them.
  #page(at: number, project: string | undefined): { events: EventView[]; next: number } {
    const last = this.#last
    const index = at + 1 - (this.#recent[0]?.seq ?? Infinity)
    if (index >= 0) {
      const page = this.#recent.slice(index, index + PAGE)
      const events = project === undefined ? page : page.filter((event) => event.project === project)
      return { events, next: page.at(-1)?.seq ?? last }
    }
    const events = this.#store.events(at, project, PAGE)
    return { events, next: events.length === PAGE ? events.at(-1)!.seq : last }
  }

  #deliver(events: readonly EventView[]): void {
    this.#recent.push(...events)
    if (this.#recent.length > 2 * RECENT) this.#recent = this.#recent.slice(-RECENT)
    this.#last = events.at(-1)!.seq
    for (const wake of this.#waiters) wake()
  }

  #more(signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        this.#waiters.delete(wake)
        signal?.removeEventListener('abort', wake)
        resolve()
      }
      this.#waiters.add(wake)
      signal?.addEventListener('abort', wake)
      // What came while the last page was taken has been told already.
      if (signal?.aborted === true) wake()
    })
  }
}
