// services/gateway/retransmission.ts: how long TCP waits before it sends again (RFC 6298), and how much it sends at all
// (RFC 5681, RFC 6582).
//
// A guest's wire loses nothing by itself, but queues have ends: a guest that doesn't keep up drops frames. So the
// congestion window begins at ten segments and has no bound but the peer's window. Times are milliseconds.

/** RFC 6298 has 1 s as the least; on a wire of one machine that would be an age. Linux has 200 ms, too. */
const RTO_MS_MIN = 200
const RTO_MS_FIRST = 1000
const RTO_MS_MAX = 10_000

/** The retransmission timeout. */
export class Rto {
  #smoothed = -1
  #variation = 0
  #rto = RTO_MS_FIRST
  #backoff = 0

  get ms(): number { return Math.min(this.#rto * 2 ** this.#backoff, RTO_MS_MAX) }

  /** A round trip, of a segment that was sent once (Karn). */
  sample(ms: number): void {
    if (this.#smoothed < 0) {
      this.#smoothed = ms
      this.#variation = ms / 2
    } else {
      this.#variation += (Math.abs(this.#smoothed - ms) - this.#variation) / 4
      this.#smoothed += (ms - this.#smoothed) / 8
    }
    this.#rto = Math.max(RTO_MS_MIN, this.#smoothed + 4 * this.#variation)
    this.#backoff = 0
  }

  /** It ran out. */
  expired(): void { if (this.#backoff < 10) this.#backoff++ }

  /** What was sent is acknowledged. */
  progressed(): void { this.#backoff = 0 }
}

const FIRST_SEGMENTS = 10
const DUPLICATES = 3
/** Beyond any window that a peer of ours opens. */
const WINDOW_BYTES_MAX = 16 * 1024 * 1024

/** The congestion window, with fast retransmit and NewReno's recovery. */
export class Congestion {
  /** Bytes that may be in flight. */
  window: number
  #threshold = WINDOW_BYTES_MAX
  readonly #mss: number
  #duplicates = 0
  #inRecovery = false
  /** While recovering: what was sent when the loss was seen. */
  #recover = 0
  #counted = 0

  constructor(mss: number) {
    this.#mss = mss
    this.window = FIRST_SEGMENTS * mss
  }

  /** `bytes` more are acknowledged, up to `una`. True if the segment there is to be sent again: it was lost, too. */
  acknowledged(bytes: number, una: number, inFlight: number): boolean {
    this.#duplicates = 0
    if (this.#inRecovery) {
      if ((una - this.#recover | 0) < 0) {
        this.window = Math.max(this.window - bytes + this.#mss, this.#mss)
        return true
      }
      this.#inRecovery = false
      this.window = Math.min(this.#threshold, Math.max(inFlight, this.#mss) + this.#mss)
      return false
    }
    if (this.window < this.#threshold) this.window += Math.min(bytes, 2 * this.#mss)
    else {
      this.#counted += bytes
      if (this.#counted >= this.window) {
        this.#counted -= this.window
        this.window += this.#mss
      }
    }
    this.window = Math.min(this.window, WINDOW_BYTES_MAX)
    return false
  }

  /** An acknowledgement says nothing new while data up to `max` is in flight. True if `una` is to be sent again. */
  duplicate(una: number, max: number): boolean {
    this.#duplicates++
    if (this.#inRecovery) {
      this.window = Math.min(this.window + this.#mss, WINDOW_BYTES_MAX)
      return false
    }
    if (this.#duplicates !== DUPLICATES) return false
    this.#lost(max - una | 0, max)
    this.window = this.#threshold + DUPLICATES * this.#mss
    this.#inRecovery = true
    return true
  }

  /** Nothing was heard for too long: all that is in flight counts as lost. */
  expired(inFlight: number, max: number): void {
    this.#lost(inFlight, max)
    this.window = this.#mss
    this.#inRecovery = false
    this.#duplicates = 0
  }

  #lost(inFlight: number, max: number): void {
    this.#threshold = Math.max(inFlight / 2, 2 * this.#mss)
    this.#recover = max
    this.#counted = 0
  }
}
