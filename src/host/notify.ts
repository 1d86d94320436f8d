// host/notify.ts: what the host tells systemd of itself (sd_notify(3)): that it is ready, what it does, that it lives.
//
// A datagram to the socket that NOTIFY_SOCKET names, if systemd started us, and nothing otherwise. The watchdog is fed
// by a timer of the host's own thread: a host whose event loop hangs is ended and started again, and its guests run on.
// A message that can't be sent is lost: the host doesn't stand or fall with who started it.

import { sendDatagram } from '../sys/sockets.ts'
import { isSupported } from '../sys/libc.ts'

/** The variables that systemd gives to a service, for that process alone. */
const VARIABLES = ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID'] as const

/** The manager of services that started this process, or nobody. */
export class Notifier {
  readonly #socket: string | undefined
  readonly #watchdog: NodeJS.Timeout | undefined

  /** Takes what concerns it out of `env`, so that what the host starts doesn't speak for it; feeds the watchdog. */
  constructor(env: Record<string, string | undefined>) {
    const { NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID } = env
    for (const name of VARIABLES) delete env[name]
    this.#socket = NOTIFY_SOCKET !== undefined && NOTIFY_SOCKET !== '' && isSupported() ? NOTIFY_SOCKET : undefined
    const microseconds = Number(WATCHDOG_USEC ?? 0)
    const isOurs = WATCHDOG_PID === undefined || Number(WATCHDOG_PID) === process.pid
    if (this.#socket === undefined || !isOurs || !(microseconds > 0)) return
    this.#watchdog = setInterval(() => this.#tell('WATCHDOG=1'), Math.max(1, microseconds / 1000 / 2))
    this.#watchdog.unref()
  }

  /** The host answers requests, after its start or after `reloading`. `status`: a line for `systemctl status`. */
  ready(status: string): void { this.#tell(`READY=1\nMAINPID=${process.pid}\nSTATUS=${status.replaceAll('\n', ' ')}`) }

  /** It reads its settings anew. */
  reloading(): void { this.#tell(`RELOADING=1\nMONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`) }

  /** It ends; the watchdog isn't fed any more. */
  stopping(): void {
    clearInterval(this.#watchdog)
    this.#tell('STOPPING=1')
  }

  #tell(text: string): void {
    if (this.#socket !== undefined) sendDatagram(this.#socket, text)
  }
}
