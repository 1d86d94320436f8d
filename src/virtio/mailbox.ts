// virtio/mailbox.ts: how a vCPU's thread has the device thread act upon a register, and waits until it has.
//
// One request at a time, in the first words of the shared memory (windows.ts): a lock that vCPUs queue for, what is
// asked, and a state that goes from free to asked to done. The device thread is woken by an eventfd, as it waits for
// many things; the vCPU by the futex under the state. If the device thread has died, `failDevices` lets nobody wait.
// Elsewhere: commands of the main thread to the device thread, in the words from M_COMMAND on (machine/devices.ts).

import { DEVICE_ANSWER_MS_MAX } from '../base/limits.ts'
import { signalEventFd } from '../sys/eventfd.ts'

const M_LOCK = 0
const M_STATE = 1
const M_INDEX = 2
const M_OFFSET = 3
const M_SIZE = 4
const M_VALUE = 5
const M_QUEUE = 6
const M_FAILED = 7
/** The eventfd that wakes the device thread. */
export const M_BELL_FD = 8
/** Commands, which the main thread writes: bits of what it wants; then what it wants. */
export const M_COMMAND = 9
export const M_BALLOON_PAGES = 10
export const M_CONSOLE_SIZE = 11

const FREE = 0
const ASKED = 1
const DONE = 2

/** Asks the device thread, and returns when it is done. Throws if it doesn't answer. */
export function callDevice(
  words: Int32Array, index: number, offset: number, size: number, value: number, queue: number,
): void {
  const deadlineMs = Date.now() + DEVICE_ANSWER_MS_MAX
  // Its bell is closed when it has ended, and may be something else by now.
  checkAlive(words)
  while (Atomics.compareExchange(words, M_LOCK, 0, 1) !== 0) wait(words, M_LOCK, 1, deadlineMs)
  words[M_INDEX] = index
  words[M_OFFSET] = offset
  words[M_SIZE] = size
  words[M_VALUE] = value
  words[M_QUEUE] = queue
  Atomics.store(words, M_STATE, ASKED)
  signalEventFd(words[M_BELL_FD]!)
  while (Atomics.load(words, M_STATE) === ASKED) wait(words, M_STATE, ASKED, deadlineMs)
  Atomics.store(words, M_STATE, FREE)
  Atomics.store(words, M_LOCK, 0)
  Atomics.notify(words, M_LOCK, 1)
}

function wait(words: Int32Array, word: number, expected: number, deadlineMs: number): void {
  checkAlive(words)
  const leftMs = deadlineMs - Date.now()
  if (leftMs <= 0) throw new Error(`The device thread of the machine hasn't answered for ${DEVICE_ANSWER_MS_MAX} ms`)
  // In steps: the thread may have ended between our look and our sleep.
  Atomics.wait(words, word, expected, Math.min(leftMs, 1000))
}

function checkAlive(words: Int32Array): void {
  if (Atomics.load(words, M_FAILED) !== 0) throw new Error('The device thread of the machine has ended')
}

/** By the device thread: does what a vCPU asks for, if one does. */
export function answerCall(
  words: Int32Array, act: (index: number, offset: number, size: number, value: number, queue: number) => void,
): void {
  if (Atomics.load(words, M_STATE) !== ASKED) return
  act(words[M_INDEX]!, words[M_OFFSET]!, words[M_SIZE]!, words[M_VALUE]! >>> 0, words[M_QUEUE]! >>> 0)
  Atomics.store(words, M_STATE, DONE)
  Atomics.notify(words, M_STATE, 1)
}

/** By the main thread, when the device thread has ended: whoever waits for it fails at once. */
export function failDevices(words: Int32Array): void {
  Atomics.store(words, M_FAILED, 1)
  Atomics.notify(words, M_STATE)
  Atomics.notify(words, M_LOCK)
}
