// api/listeners.ts: the sockets that the API listens on, and who is at their other ends.
//
// A Unix socket belongs to its owner and group (mode 0660 from its first moment): who can connect is an administrator,
// by the name of the process's user. Plain TCP is for loopback addresses only, with tokens; any other address takes TLS
// and a token, or a client certificate of our CA whose common name the host has a scope for.
//
// A socket file that nobody listens on is what a killed host leaves: it is taken over. One that answers isn't.

import { chownSync, lstatSync, unlinkSync } from 'node:fs'
import { createServer as createPlain, type Server, type ServerOptions } from 'node:http'
import { createServer as createSecure } from 'node:https'
import { connect, type AddressInfo, type Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { CellarError } from '../base/errors.ts'
import {
  API_CONNECTIONS_MAX, API_HEAD_BYTES_MAX, API_HEAD_MS_MAX, API_REQUEST_MS_MAX, LISTEN_BACKLOG_MAX,
} from '../base/limits.ts'
import type { Actor, Scope } from '../host/operator.ts'
import { isLoopbackAddress, type Origin } from './auth.ts'

/** A process at the other end of a Unix socket, as the kernel knows it. */
export type Peer = { readonly uid: number; readonly gid: number; readonly pid: number }

/** What somebody with a certificate of our CA may, by its common name. */
export type Certificates = Readonly<Record<string, { readonly scope: Scope; readonly project?: string | undefined }>>

export type UnixAddress = {
  readonly path: string
  /** The group whose members are let in; the process's own if it isn't given. */
  readonly gid?: number | undefined
  /** Who is at the other end of a connection. */
  readonly peerOf: (socket: Socket) => Peer | undefined
}

export type TcpAddress = {
  /** A name or an address without brackets. */
  readonly host: string
  /** 0: a free one. */
  readonly port: number
  /** PEM. */
  readonly tls?: {
    readonly cert: string; readonly key: string
    /** Whose client certificates are taken, and what their holders may. */
    readonly clientCa?: string | undefined; readonly certificates?: Certificates | undefined
  } | undefined
}

/** Bounds that tests lower. */
export type ListenerLimits = { readonly connections?: number | undefined; readonly headMs?: number | undefined }

/** A server that listens, without handlers yet, and what its connections tell of their requests. */
export type ApiListener = { readonly server: Server; readonly originOf: (socket: Socket) => Origin }

/** Listens on a Unix socket. Throws PORT_IN_USE if somebody else does, LISTEN_FAILED. */
export async function listenUnix(address: UnixAddress, limits: ListenerLimits): Promise<ApiListener> {
  const server = createPlain(optionsOf(limits))
  prepare(server, limits)
  await takeOver(address.path)
  await listening(server, address.path, () => {
    // The file must never be open to others, not even until a chmod.
    const before = process.umask(0o117)
    try {
      server.listen({ path: address.path, backlog: LISTEN_BACKLOG_MAX })
    } finally {
      process.umask(before)
    }
  })
  if (address.gid !== undefined) chownSync(address.path, -1, address.gid)
  return {
    server, originOf: remembered((socket) => ({ actor: peerActor(address, socket), abort: () => socket.destroy() })),
  }
}

/** Listens on TCP. Throws PORT_IN_USE, LISTEN_FAILED; FLAG_VALUE_INVALID for an open address without TLS. */
export async function listenTcp(address: TcpAddress, limits: ListenerLimits): Promise<ApiListener> {
  const { host, port, tls } = address
  const name = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
  const isLoopback = isLoopbackAddress(host)
  const refusal = (): CellarError => new CellarError('FLAG_VALUE_INVALID',
    ['--listen', `tcp:${name}`, 'a loopback address, or have a certificate and a key: tokens would go in the clear'])
  if (tls === undefined && !isLoopback) throw refusal()
  const server = tls === undefined ? createPlain(optionsOf(limits)) : secure(tls, name, limits)
  prepare(server, limits)
  await listening(server, name, () => { server.listen({ host, port, backlog: LISTEN_BACKLOG_MAX }) })
  // A name such as localhost is what /etc/hosts says.
  if (tls === undefined && !isLoopbackAddress((server.address() as AddressInfo).address)) {
    server.close()
    throw refusal()
  }
  const originOf = remembered((socket) => ({
    isLoopback: tls === undefined, abort: () => socket.destroy(),
    actor: tls === undefined ? undefined : certificateActor(socket as TLSSocket, tls.certificates ?? {}),
  }))
  return { server, originOf }
}

/** A connection's origin doesn't change: it is asked for once. */
function remembered(originOf: (socket: Socket) => Origin): (socket: Socket) => Origin {
  const known = new WeakMap<Socket, Origin>()
  return (socket) => {
    const origin = known.get(socket) ?? originOf(socket)
    known.set(socket, origin)
    return origin
  }
}

function secure(tls: NonNullable<TcpAddress['tls']>, name: string, limits: ListenerLimits): Server {
  const { cert, key, clientCa } = tls
  try {
    return createSecure({
      ...optionsOf(limits), cert, key, minVersion: 'TLSv1.2', handshakeTimeout: limits.headMs ?? API_HEAD_MS_MAX,
      // Who has no good certificate may have a token: it is the request that is refused, with a reason.
      ...clientCa === undefined ? {} : { ca: clientCa, requestCert: true, rejectUnauthorized: false },
    })
  } catch (error) {
    throw new CellarError('LISTEN_FAILED', [name, `the certificate or key is unusable: ${(error as Error).message}`])
  }
}

function optionsOf({ headMs = API_HEAD_MS_MAX }: ListenerLimits): ServerOptions {
  return {
    maxHeaderSize: API_HEAD_BYTES_MAX, headersTimeout: headMs, requestTimeout: API_REQUEST_MS_MAX,
    connectionsCheckingInterval: Math.min(headMs, 1000), keepAlive: true, noDelay: true,
    // Others who offer an upgrade (HTTP/2 in the clear) get their answer without.
    shouldUpgradeCallback: (request) => request.headers.upgrade?.toLowerCase() === 'websocket',
  }
}

function prepare(server: Server, limits: ListenerLimits): void {
  server.maxConnections = limits.connections ?? API_CONNECTIONS_MAX
}

async function listening(server: Server, name: string, listen: () => void): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => reject(error.code === 'EADDRINUSE'
      ? new CellarError('PORT_IN_USE', [name], { cause: error })
      : new CellarError('LISTEN_FAILED', [name, error.message], { cause: error })))
    server.once('listening', resolve)
    listen()
  })
  server.removeAllListeners('error')
  // Taking a connection may fail (no descriptor is left): the next one tries again.
  server.on('error', () => {})
}

/** Removes a socket file that nobody listens on. Throws PORT_IN_USE if somebody does, or it is another kind of file. */
async function takeOver(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false })
  if (found === undefined) return
  if (!found.isSocket()) throw new CellarError('LISTEN_FAILED', [path, "there is a file that isn't a socket"])
  const isLive = await new Promise<boolean>((resolve) => {
    const socket = connect({ path })
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    // Any other failure (no permission, a full backlog) doesn't say that nobody is there.
    socket.once('error', ({ code }: NodeJS.ErrnoException) => resolve(code !== 'ECONNREFUSED' && code !== 'ENOENT'))
  })
  if (isLive) throw new CellarError('PORT_IN_USE', [path])
  try {
    unlinkSync(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
      throw new CellarError('LISTEN_FAILED', [path, (error as Error).message], { cause: error })
    }
  }
}

/** Who could open the socket was let in by its mode. */
function peerActor({ peerOf }: UnixAddress, socket: Socket): Actor {
  let peer: Peer | undefined
  try {
    peer = peerOf(socket)
  } catch {
    // Its process has gone meanwhile: the name is for the audit log only.
  }
  return { name: peer === undefined ? 'socket' : `uid:${peer.uid}`, scope: 'admin' }
}

/** Whose certificate it is, if it is of our CA and the host has a scope for its common name. */
function certificateActor(socket: TLSSocket, certificates: Certificates): Actor | undefined {
  if (!socket.authorized) return undefined
  // A subject with several common names is nobody's.
  const certificate: { subject?: { CN?: unknown } } | null = socket.getPeerCertificate()
  const name = certificate?.subject?.CN
  if (typeof name !== 'string' || !Object.hasOwn(certificates, name)) return undefined
  return { name: `cert:CN=${name}`, ...certificates[name]! }
}
