// kvm/struct.ts: C structs and ioctl numbers as data, laid out as a C compiler for x86-64 lays them out.
//
// A struct is a name, a size and where each field is. Whoever reads or writes one does so through a DataView over
// memory that the kernel can reach: view.getBigUint64(start + kvm_regs.at.rip, true). abi_test.ts lets `cc` print the
// same numbers from <linux/kvm.h> and compares.

/** What a field can be: how many bytes, and on what boundary. */
export type Type = { readonly size: number; readonly align: number }

/** A struct as C has it. `at` says where each field is, from the start of the struct. */
export type Struct<K extends string = string> = Type & {
  readonly name: string
  readonly at: Readonly<Record<K, number>>
  /** The fields are those of a member of this name, inside of the struct `name`. */
  readonly member?: string
}

export const u8: Type = { size: 1, align: 1 }
export const u16: Type = { size: 2, align: 2 }
export const u32: Type = { size: 4, align: 4 }
export const u64: Type = { size: 8, align: 8 }

/** `count` of `type` in a row; 0 for an array that goes on behind the struct. */
export const array = (type: Type, count: number): Type => ({ size: type.size * count, align: type.align })

/** A struct without a name inside another, of which nobody needs the fields. */
export const bytes = (size: number, align: number): Type => ({ size, align })

/** A struct: its fields in their order. */
export function struct<const F extends Record<string, Type>>(name: string, fields: F): Struct<keyof F & string> {
  return { name, ...place(fields, 0) }
}

/** A member of `outer` that is a struct without a name; `at` counts from the start of `outer`. */
export function member<const F extends Record<string, Type>>(
  outer: Struct, name: string, fields: F,
): Struct<keyof F & string> {
  return { name: outer.name, member: name, ...place(fields, outer.at[name]!) }
}

function place<F extends Record<string, Type>>(fields: F, start: number): Omit<Struct<keyof F & string>, 'name'> {
  const at: Record<string, number> = {}
  let end = start
  let align = 1
  for (const [name, type] of Object.entries(fields)) {
    end = roundUp(end, type.align)
    at[name] = end
    end += type.size
    align = Math.max(align, type.align)
  }
  return { size: roundUp(end - start, align), align, at: at as Record<keyof F & string, number> }
}

const roundUp = (value: number, to: number): number => Math.ceil(value / to) * to

// <asm-generic/ioctl.h>: direction in bits 31…30, size in 29…16, type in 15…8, number in 7…0.
const request = (direction: number, type: number, number: number, size: number): bigint =>
  BigInt(direction) << 30n | BigInt(size) << 16n | BigInt(type) << 8n | BigInt(number)

// Spelled as in C. A request is a bigint because an ioctl takes it as an unsigned long.
export const _IO = (type: number, number: number): bigint => request(0, type, number, 0)
export const _IOW = (type: number, number: number, of: Type): bigint => request(1, type, number, of.size)
export const _IOR = (type: number, number: number, of: Type): bigint => request(2, type, number, of.size)
export const _IOWR = (type: number, number: number, of: Type): bigint => request(3, type, number, of.size)
