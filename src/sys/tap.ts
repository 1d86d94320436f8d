// sys/tap.ts: a TAP device of this machine, opened by name (linux/if_tun.h): frames as a file.

import { closeSync, constants, existsSync, openSync } from 'node:fs'
import { Scratch, answer, bind } from './libc.ts'
import { ENODEV, errnoOf } from '../base/errno.ts'

const TUNSETIFF = 0x400454can
const TUNSETVNETHDRSZ = 0x400454d8n
const IFF_TAP = 0x0002
const IFF_NO_PI = 0x1000
const IFF_VNET_HDR = 0x4000
/** struct virtio_net_hdr_v1: what each frame begins with. */
const VNET_HDR_BYTES = 12

// struct ifreq { char ifr_name[16]; short ifr_flags; … }, 40 bytes.
const NAME_BYTES = 16
const NAME = /^(?!\.)[\w.-]{1,15}$/
const scratch = new Scratch(48)

const native = bind({ ioctl: { arguments: ['int32', 'uint64', 'int64'], return: 'int32' } })

/** Opens the device, which must be there: a descriptor, or a negated errno. Frames begin with 12 bytes of header. */
export function openTap(name: string): number {
  // The kernel would make one that isn't there, which leads nowhere.
  if (!NAME.test(name) || !existsSync(`/sys/class/net/${name}/tun_flags`)) return -ENODEV
  let fd: number
  try {
    // A read must not wait: the device thread has other devices, and reads until there is nothing more.
    fd = openSync('/dev/net/tun', constants.O_RDWR | constants.O_NONBLOCK)
  } catch (error) {
    return -errnoOf(error)
  }
  scratch.bytes.fill(0)
  scratch.bytes.set(Buffer.from(name, 'latin1').subarray(0, NAME_BYTES - 1))
  scratch.view.setUint16(NAME_BYTES, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, true)
  // SAFETY: an ifreq at scratch[0], which outlives the call.
  let result = answer(native.ioctl(fd, TUNSETIFF, scratch.address))
  if (result >= 0) {
    scratch.view.setInt32(0, VNET_HDR_BYTES, true)
    // SAFETY: an int at scratch[0].
    result = answer(native.ioctl(fd, TUNSETVNETHDRSZ, scratch.address))
  }
  if (result >= 0) return fd
  closeSync(fd)
  return result
}
