// machine/ports.ts: the I/O ports of a machine: its serial line, sleep and reset. All else is not there: ones, as an
// empty bus reads.
//
// Hot path: no allocation, no closures, numbers only. Elsewhere: who calls it (vcpu_worker.ts), numbers (layout.ts).

import { Uart } from '../device/uart_16550.ts'
import { signalEventFd } from '../sys/eventfd.ts'
import { SLEEP_OFF } from './acpi.ts'
import {
  KEYBOARD_PORT, KEYBOARD_RESET, RESET_PORT, RESET_VALUE, SERIAL_PORT, SERIAL_PORTS, SLEEP_CONTROL_PORT,
  SLEEP_STATUS_PORT,
} from './layout.ts'

import type { MachineEnd } from './engine.ts'

/** Nobody is there. */
export const UNCLAIMED = 'unclaimed'

/** The ports, as one vCPU's thread has them. */
export class Ports {
  readonly #uart: Uart

  constructor(options: {
    uart: SharedArrayBuffer; uartInterruptFd: number; output: () => void; mayWait: () => boolean
  }) {
    const { uart, uartInterruptFd, output, mayWait } = options
    this.#uart = new Uart(uart, { interrupt: () => signalEventFd(uartInterruptFd), output, mayWait })
  }

  /** The guest writes a byte: what becomes of the machine, if anything does. */
  out(port: number, value: number): MachineEnd | typeof UNCLAIMED | undefined {
    if (port >= SERIAL_PORT && port < SERIAL_PORT + SERIAL_PORTS) {
      this.#uart.write(port - SERIAL_PORT, value)
      return undefined
    }
    switch (port) {
      case SLEEP_CONTROL_PORT: return value === SLEEP_OFF ? OFF : undefined
      case SLEEP_STATUS_PORT: return undefined
      case RESET_PORT: return value === RESET_VALUE ? RESET : undefined
      case KEYBOARD_PORT: return value === KEYBOARD_RESET ? RESET : undefined
      default: return UNCLAIMED
    }
  }

  /** The guest reads a byte. -1, all ones, where nobody is. */
  in(port: number): number {
    if (port >= SERIAL_PORT && port < SERIAL_PORT + SERIAL_PORTS) return this.#uart.read(port - SERIAL_PORT)
    switch (port) {
      // A keyboard controller that is always ready for a command: the one that Linux resets old PCs with.
      case SLEEP_CONTROL_PORT: case SLEEP_STATUS_PORT: case RESET_PORT: case KEYBOARD_PORT: return 0
      default: return -1
    }
  }
}

const OFF: MachineEnd = { kind: 'off', reason: 'poweroff' }
const RESET: MachineEnd = { kind: 'reset', reason: 'reset' }
