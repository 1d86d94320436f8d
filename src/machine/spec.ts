// machine/spec.ts: a machine as its engine is told of it, whichever engine: what it has, and through which descriptors.
//
// All paths are opened, or descriptors are given, before the engine's process gives up its rights. Nothing here is a
// guest's; it was checked by the host (host/spec.ts). Elsewhere: what an engine does (engine.ts).

/** The largest machines; more is refused when a guest is specified. */
export const VCPUS_MAX = 32
export const DISKS_MAX = 8

/** A disk of a machine, in the order in which the guest has them: vda, vdb, … */
export type DiskSpec = {
  readonly path: string
  readonly format: 'raw' | 'qcow2'
  readonly readOnly: boolean
  /** What the guest is told of it, 20 characters at most: /dev/disk/by-id/virtio-SERIAL. */
  readonly serial: string
  /**
   * Folders in which backing files of a qcow2 may lie; others are refused (DISK_BACKING_OUTSIDE). Empty: none may.
   */
  readonly backingFolders: readonly string[]
}

/** A network card. Frames go through `fd`: each after its length, 32 bits, big-endian, as QEMU's stream netdev does. */
export type NicSpec = {
  /** 'xx:xx:xx:xx:xx:xx' */
  readonly mac: string
  /** A connected stream socket, or a TAP device with IFF_VNET_HDR (12 bytes). The engine owns it. */
  readonly fd: number
  readonly kind: 'stream' | 'tap'
  readonly mtu: number
}

/** A machine. */
export type MachineSpec = {
  readonly name: string
  readonly vcpus: number
  /** A multiple of 2 MiB. What the guest sees; the balloon takes of it. */
  readonly memoryBytes: number
  /** Undefined: the first disk has a boot loader, which needs firmware: the QEMU engine alone has one. */
  readonly boot: { readonly kernel: string; readonly initrd?: string | undefined; readonly commandLine: string } |
    undefined
  readonly disks: readonly DiskSpec[]
  readonly nics: readonly NicSpec[]
  /** Its address among the machines of a host, from 3 on (virtio-vsock). */
  readonly cid: number
  /** 16 bytes as hex: changes with each fork and restore (VMGenID). */
  readonly generation: string
}
