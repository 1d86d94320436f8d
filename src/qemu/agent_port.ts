// qemu/agent_port.ts: the guest's end of a virtio-serial port as streams: one for each time that the guest has it open.
//
// QEMU has one socket for the port, for the machine's life, and tells apart from it that the guest has opened or closed
// the port; at most once a second, so that a guest which closes and opens it at once is heard to open it twice. So what
// a stream begins with may be the end of what came before: both sides of the agent's protocol look for its first frame.
// Nothing is read while the guest doesn't have the port open, and no faster than the stream's owner reads.

import { Socket } from 'node:net'
import { Duplex } from 'node:stream'

/** The port of one machine. */
export class AgentPort {
  readonly #socket: Socket
  readonly #opened: (stream: Duplex) => void
  #stream: Duplex | undefined

  /** `fd`: a connected stream socket, owned from now on. `opened` gets each stream. */
  constructor(fd: number, opened: (stream: Duplex) => void) {
    this.#opened = opened
    this.#socket = new Socket({ fd, readable: true, writable: true })
    this.#socket.pause()
    this.#socket.on('data', (bytes: Buffer) => {
      if (this.#stream?.push(bytes) !== true) this.#socket.pause()
    })
    this.#socket.on('error', () => { /* 'close' follows. */ })
    this.#socket.on('close', () => this.#end())
  }

  /** The guest has opened the port, or closed it. */
  changed(isOpen: boolean): void {
    this.#end()
    if (!isOpen || this.#socket.destroyed) return
    const stream: Duplex = new Duplex({
      read: () => { if (this.#stream === stream) this.#socket.resume() },
      write: (bytes: Buffer, _encoding, done) => {
        if (this.#stream !== stream) done(new Error('The guest has closed the line to its agent'))
        else this.#socket.write(bytes, (error) => done(error))
      },
      destroy: (error, done) => {
        if (this.#stream === stream) this.#stream = undefined
        done(error)
      },
    })
    this.#stream = stream
    this.#opened(stream)
  }

  /** Ends it all. */
  close(): void {
    this.#end()
    this.#socket.destroy()
  }

  #end(): void {
    this.#socket.pause()
    const stream = this.#stream
    this.#stream = undefined
    stream?.push(null)
    stream?.end()
  }
}
