// wasi/p1/args.ts: args_get, args_sizes_get, environ_get, environ_sizes_get.
//
// Both lists have one layout: an array of pointers, and the strings with their final NULs in one buffer. Everything is
// checked before the first byte is written.

import { ESUCCESS } from '../../base/errno.ts'
import type { Context } from './context.ts'

export function args_get(context: Context, pointers: number, buffer: number): number {
  return copyList(context, context.args, pointers, buffer)
}

export function args_sizes_get(context: Context, count: number, size: number): number {
  return sizes(context, context.args, count, size)
}

export function environ_get(context: Context, pointers: number, buffer: number): number {
  return copyList(context, context.env, pointers, buffer)
}

export function environ_sizes_get(context: Context, count: number, size: number): number {
  return sizes(context, context.env, count, size)
}

function copyList({ memory }: Context, list: readonly Uint8Array[], pointers: number, buffer: number): number {
  const size = list.reduce((sum, item) => sum + item.length, 0)
  let pointerAt = memory.check(pointers, list.length * 4)
  let at = memory.check(buffer, size)
  for (const item of list) {
    memory.view.setUint32(pointerAt, at, true)
    memory.bytes.set(item, at)
    pointerAt += 4
    at += item.length
  }
  return ESUCCESS
}

function sizes({ memory }: Context, list: readonly Uint8Array[], count: number, size: number): number {
  const sizeAt = memory.check(size, 4)
  memory.setU32(count, list.length)
  memory.view.setUint32(sizeAt, list.reduce((sum, item) => sum + item.length, 0), true)
  return ESUCCESS
}
