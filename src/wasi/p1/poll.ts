// wasi/p1/poll.ts: poll_oneoff (wasi_snapshot_preview1.witx), how a guest waits for many things at once.
//
//   subscription, 48 bytes            event, 32 bytes
//    0 userdata u64                    0 userdata u64
//    8 tag u8                          8 error u16
//   16 clock: id u32                  10 type u8
//   24        timeout u64             16 fd_readwrite: nbytes u64
//   32        precision u64           24               flags u16
//   40        flags u16
//   16 fd_read, fd_write: fd u32
//
// One try scans all subscriptions, keeps what is ready in `found`, and only then writes: the guest may give the same
// memory for both lists. If nothing is ready the vCPU waits for every descriptor and for the nearest deadline, and the
// scan is done again when it is woken. Relative clocks count from the first try, `context.since`.
//
// A poll whose deadline has passed at the first try, and that finds no descriptor ready, still gives the event loop one
// turn: what has arrived at a socket is known to us only after that, and a guest that polls with a zero timeout in a
// loop would otherwise never see it. Nothing is registered for that turn: a console would begin to read, unasked.
// Sleeps of zero, with no descriptor in the list, answer at once.
//
// Hot path: a server polls all its connections each time. No allocation, no closures, numbers and typed arrays only.

import { EAGAIN, EBADF, EINVAL, ENOTCAPABLE, ENOTSUP, ESUCCESS } from '../../base/errno.ts'
import { POLL_SUBSCRIPTIONS_MAX } from '../../base/limits.ts'
import type { Clock } from '../../services/clock/clock.ts'
import {
  CLOCKID_MONOTONIC, CLOCKID_REALTIME, CLOCKID_THREAD_CPUTIME_ID, EVENTRWFLAGS_FD_READWRITE_HANGUP, EVENTTYPE_CLOCK,
  EVENTTYPE_FD_READ, EVENTTYPE_FD_WRITE, RIGHTS_FD_READ, RIGHTS_FD_WRITE, RIGHTS_POLL_FD_READWRITE, RIGHTS_SOCK_ACCEPT,
  SUBCLOCKFLAGS_SUBSCRIPTION_CLOCK_ABSTIME,
} from './abi.ts'
import type { Context } from './context.ts'
import { WAIT } from './context.ts'
import type { Entry } from './descriptors.ts'

const SUBSCRIPTION_BYTES = 48
const EVENT_BYTES = 32

/** Waits until one of `count` subscriptions at `input` happens; the events go to `output`, their number to `out`. */
export function poll_oneoff(context: Context, input: number, output: number, count: number, out: number): number {
  const subscriptions = count >>> 0
  if (subscriptions === 0 || subscriptions > POLL_SUBSCRIPTIONS_MAX) return EINVAL
  const { memory, clock } = context
  const start = memory.check(input, subscriptions * SUBSCRIPTION_BYTES)
  memory.check(output, subscriptions * EVENT_BYTES)
  memory.check(out, 4)

  const now = clock.monotonic()
  const first = context.since < 0
  if (first) context.since = now
  if (!scan(context, start, subscriptions, now)) {
    context.since = -1
    return EINVAL
  }
  if (found.count === 0) {
    awaitAll(context, start, subscriptions)
    if (found.nearest < Infinity) context.awaitTimer(found.nearest, now + found.due)
    return WAIT
  }
  if (first && found.unready > 0 && found.count === found.clocks) return context.awaitTimer(0)
  context.since = -1
  writeEvents(context, output >>> 0)
  memory.setU32(out, found.count)
  return ESUCCESS
}

// What one scan found. One object serves the whole thread: it is filled and used up within a hypercall.
const found = {
  /** Events, and how many of them are clocks that rang. */
  count: 0,
  clocks: 0,
  /** Descriptors that would have to be waited for. */
  unready: 0,
  /** Nanoseconds until the first clock rings, and until it is to be looked at. */
  due: Infinity,
  nearest: Infinity,
  // Per event.
  userdataLow: new Uint32Array(64),
  userdataHigh: new Uint32Array(64),
  error: new Uint16Array(64),
  type: new Uint8Array(64),
  bytes: new Float64Array(64),
  flags: new Uint8Array(64),
}

// Fills `found`; false if a subscription isn't one.
function scan(context: Context, start: number, subscriptions: number, now: number): boolean {
  const { view } = context.memory
  found.count = 0
  found.clocks = 0
  found.unready = 0
  found.due = Infinity
  found.nearest = Infinity
  const end = start + subscriptions * SUBSCRIPTION_BYTES
  for (let at = start; at < end; at += SUBSCRIPTION_BYTES) {
    const tag = view.getUint8(at + 8)
    if (tag === EVENTTYPE_CLOCK) {
      scanClock(context, view, at, now)
    } else if (tag === EVENTTYPE_FD_READ || tag === EVENTTYPE_FD_WRITE) {
      const entry = context.descriptors.get(view.getUint32(at + 16, true))
      const bytes = readiness(entry, tag)
      if (bytes === -EAGAIN) found.unready++
      else add(view, at, tag, bytes, bytes >= 0 && entry!.descriptor.hangup?.() === true)
    } else {
      return false
    }
  }
  return true
}

function scanClock(context: Context, view: DataView, at: number, now: number): void {
  const id = view.getUint32(at + 16, true)
  const flags = view.getUint16(at + 40, true)
  if (id > CLOCKID_THREAD_CPUTIME_ID || (flags & ~SUBCLOCKFLAGS_SUBSCRIPTION_CLOCK_ABSTIME) !== 0) {
    add(view, at, EVENTTYPE_CLOCK, -EINVAL, false)
    return
  }
  if (id !== CLOCKID_REALTIME && id !== CLOCKID_MONOTONIC) {
    add(view, at, EVENTTYPE_CLOCK, -ENOTSUP, false)
    return
  }
  const absolute = (flags & SUBCLOCKFLAGS_SUBSCRIPTION_CLOCK_ABSTIME) !== 0
  let left: number
  const isRealtime = absolute && id === CLOCKID_REALTIME
  if (isRealtime) {
    left = untilRealtime(context.clock, view.getBigUint64(at + 24, true))
  } else {
    const timeout = view.getUint32(at + 28, true) * 4294967296 + view.getUint32(at + 24, true)
    left = absolute ? timeout - now : timeout - (now - context.since)
  }
  if (left <= 0) {
    found.clocks++
    add(view, at, EVENTTYPE_CLOCK, 0, false)
    left = 0
  }
  found.due = Math.min(found.due, left)
  // The wall clock may be set while we wait, so that it is looked at every second.
  found.nearest = Math.min(found.nearest, isRealtime ? Math.min(left, 1e9) : left)
}

// BigInt: today's nanoseconds since 1970 don't fit into a number.
function untilRealtime(clock: Clock, deadline: bigint): number {
  const now = clock.realtime()
  return Number(deadline - (BigInt(now[0]!) * 1_000_000_000n + BigInt(now[1]!)))
}

// Bytes ≥ 0 if the descriptor is ready for `tag`, -EAGAIN if it must be waited for, else a negated errno.
function readiness(entry: Entry | undefined, tag: number): number {
  if (entry === undefined) return -EBADF
  const { descriptor } = entry
  const reading = tag === EVENTTYPE_FD_READ
  // A listening socket is "read" by accepting.
  const transfer = reading ? RIGHTS_FD_READ | RIGHTS_SOCK_ACCEPT : RIGHTS_FD_WRITE
  if ((entry.rightsBase & RIGHTS_POLL_FD_READWRITE) === 0 || (entry.rightsBase & transfer) === 0) return -ENOTCAPABLE
  if (reading) {
    if (descriptor.pollRead !== undefined) return descriptor.pollRead()
    // What never waits, a regular file, is always ready.
    return descriptor.read === undefined ? -EBADF : 1
  }
  if (descriptor.pollWrite !== undefined) return descriptor.pollWrite()
  return descriptor.write === undefined ? -EBADF : 1
}

// Adds an event for the subscription at `at`: `result` is a number of bytes, or a negated errno.
function add(view: DataView, at: number, type: number, result: number, hangup: boolean): void {
  const i = found.count++
  if (i === found.type.length) grow()
  found.userdataLow[i] = view.getUint32(at, true)
  found.userdataHigh[i] = view.getUint32(at + 4, true)
  found.type[i] = type
  found.error[i] = result < 0 ? -result : ESUCCESS
  found.bytes[i] = result < 0 ? 0 : result
  found.flags[i] = hangup ? EVENTRWFLAGS_FD_READWRITE_HANGUP : 0
}

// Doubles the room for events. Bounded by POLL_SUBSCRIPTIONS_MAX: 20 bytes each, 5 MiB.
function grow(): void {
  const length = found.type.length * 2
  const grown = <T extends { set(from: T): void }>(from: T, to: T): T => {
    to.set(from)
    return to
  }
  found.userdataLow = grown(found.userdataLow, new Uint32Array(length))
  found.userdataHigh = grown(found.userdataHigh, new Uint32Array(length))
  found.error = grown(found.error, new Uint16Array(length))
  found.type = grown(found.type, new Uint8Array(length))
  found.bytes = grown(found.bytes, new Float64Array(length))
  found.flags = grown(found.flags, new Uint8Array(length))
}

// Registers the vCPU with every descriptor that isn't ready. None is registered that isn't valid: it would be ready.
function awaitAll(context: Context, start: number, subscriptions: number): void {
  const { view } = context.memory
  const end = start + subscriptions * SUBSCRIPTION_BYTES
  for (let at = start; at < end; at += SUBSCRIPTION_BYTES) {
    const tag = view.getUint8(at + 8)
    if (tag === EVENTTYPE_CLOCK) continue
    const { descriptor } = context.descriptors.get(view.getUint32(at + 16, true))!
    if (tag === EVENTTYPE_FD_READ) context.awaitReadable(descriptor)
    else context.awaitWritable(descriptor)
  }
}

function writeEvents(context: Context, output: number): void {
  const { view } = context.memory
  for (let i = 0, at = output; i < found.count; i++, at += EVENT_BYTES) {
    view.setUint32(at, found.userdataLow[i]!, true)
    view.setUint32(at + 4, found.userdataHigh[i]!, true)
    view.setUint32(at + 8, found.error[i]! | found.type[i]! << 16, true)
    view.setUint32(at + 12, 0, true)
    const bytes = found.bytes[i]!
    view.setUint32(at + 16, bytes >>> 0, true)
    view.setUint32(at + 20, (bytes / 4294967296) >>> 0, true)
    view.setUint32(at + 24, found.flags[i]!, true)
    view.setUint32(at + 28, 0, true)
  }
}
