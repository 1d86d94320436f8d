// tests/machine/nested_host.ts: a Linux with an ordinary /dev/kvm, emulated by QEMU on any x86-64 machine.
//
// A nested host is a QEMU process (`-accel tcg -cpu max`) with Debian's kernel and kvm-amd, and the project's Node on a
// disk. It is booted once, in some seconds, and then runs one command after the other in the project's folder, whose
// files are the same paths there: what has changed here since the last command is sent first. Each host has a name
// and a folder in /tmp with its sockets, its console's log and what it has been sent.
//
// Under QEMU 7.2 a Node there may crash as it begins, with SIGSEGV or a failed check of V8's about pages of compiled
// code ("it->second.Size() > offset"): 4 of 10 in one host, hardly ever in others. It does so in a process that has
// nothing to do with KVM, and with -cpu max,avx=off, max,pku=off, and node --single-threaded as well: we take it for
// the emulator's doing, and haven't proved it. Tests start such a process once more, and say so (guests.ts).
// Elsewhere: packages (nested_packages.ts), what it boots from (nested_image.ts), requests (nested_line.ts).

import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { packTar } from 'modern-tar'
import { makeDisk, makeInitramfs } from './nested_image.ts'
import { isAlive, LineError, lock, reach, request, type Listeners, type Output } from './nested_line.ts'
import { findPackages, ROOT, type Packages } from './nested_packages.ts'

/** The project's files that a nested host has, beside node_modules. */
const SYNCED = ['src', 'tests', 'bin', 'guests', 'tools', 'bench', 'sdk', 'examples', 'package.json', 'tsconfig.json']

const MEMORY = '4G'
/** A host that nobody has wanted for this long goes by itself: a test that was killed leaves nothing behind. */
const IDLE_S_MAX = 3600
const RUN_MS_MAX = 300_000
const STOP_MS_MAX = 5_000

/** A file to send: where it lies here and there. */
export type SentFile = { from: string; to: string }

/** How a command is run there. */
export type RunOptions = {
  /** More files or folders that the command needs: their paths here, or with another path there. */
  files?: readonly (string | SentFile)[]
  /** False: KVM without nested paging, by shadow page tables (kvm-amd npt=0). */
  npt?: boolean
  timeoutMs?: number
  env?: Readonly<Record<string, string>>
  listeners?: Listeners
}

/** How it is booted. */
type BootOptions = { memory?: string; idleS?: number }

/** A nested host by its name: running, or to be started. */
export class NestedHost {
  readonly #folder: string
  readonly #bootOptions: BootOptions

  constructor(name: string, boot: BootOptions = {}) {
    this.#folder = join(`/tmp/cellar-nested-${process.getuid!()}`, name)
    this.#bootOptions = boot
  }

  /** What its kernel said. */
  get logPath(): string { return join(this.#folder, 'kernel.log') }

  isRunning(): boolean {
    return isAlive(this.#pid())
  }

  /** Boots it, unless it runs; `fresh` stops it before. */
  async start({ fresh = false } = {}): Promise<void> {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 })
    using _ = await lock(this.#folder)
    if (fresh) await this.#end()
    if (this.isRunning()) return
    const packages = findPackages()
    if ('missing' in packages) throw new Error(`No nested host: ${packages.missing}`)
    await this.#boot(packages)
    try {
      await reach(this.#folder)
    } catch (error) {
      if (!(error instanceof LineError)) throw error
      throw new Error(`${error.message}; its kernel's last words:\n${this.#lastWords()}`, { cause: error })
    }
  }

  /** Runs `command` (a line for sh) in the project's folder there. It is started first if need be. */
  async run(command: string, options: RunOptions = {}): Promise<Output> {
    await this.start()
    using _ = await lock(this.#folder)
    const { files = [], npt = true, timeoutMs = RUN_MS_MAX, env = {}, listeners = {} } = options
    const sent = this.#sent()
    const now = listFiles([...SYNCED.map((name) => join(ROOT, name)), ...files])
    const gone = [...sent.keys()].filter((path) => !now.has(path) && path.startsWith(`${ROOT}/`))
    const changed = [...now].filter(([path, file]) => sent.get(path) !== file.mark)
    const job = [...gone.map((path) => `rm -f ${quote(path)}`), `cd ${quote(ROOT)}`,
      ...Object.entries(env).map(([name, value]) => `export ${name}=${quote(value)}`), command, ''].join('\n')
    const archive = await packTar([
      { header: { name: 'nested/job.sh', size: 0, mode: 0o755 }, body: job },
      ...changed.map(([path, { from, mode }]) => ({ header: { name: path.slice(1), size: 0, mode }, from })),
    ].map((entry) => {
      const body = 'from' in entry ? readFileSync(entry.from) : Buffer.from(entry.body)
      return { header: { ...entry.header, size: body.length }, body }
    }))
    try {
      const output = await request(this.#folder, { archive, npt, timeoutMs, listeners })
      for (const path of gone) sent.delete(path)
      for (const [path, { mark }] of changed) sent.set(path, mark)
      writeFileSync(join(this.#folder, 'sent.json'), JSON.stringify([...sent]))
      return output
    } catch (error) {
      if (!(error instanceof LineError)) throw error
      throw new Error(`${error.message}; its kernel's last words:\n${this.#lastWords()}`, { cause: error })
    }
  }

  /** Ends it, and removes its folder. */
  async stop(): Promise<void> {
    await this.#end()
    rmSync(this.#folder, { recursive: true, force: true })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }

  async #boot(packages: Packages): Promise<void> {
    const { memory = MEMORY, idleS = IDLE_S_MAX } = this.#bootOptions
    const at = (name: string): string => join(this.#folder, name)
    for (const name of ['run.sock', 'err.sock', 'sent.json', 'kernel.log']) rmSync(at(name), { force: true })
    writeFileSync(at('initramfs'), makeInitramfs(packages))
    const child = spawn('qemu-system-x86_64', [
      '-accel', 'tcg,thread=multi,tb-size=512', '-cpu', 'max', '-smp', '2', '-m', memory,
      '-M', 'q35,smm=off,sata=off,smbus=off,vmport=off',
      '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot',
      '-kernel', packages.kernel, '-initrd', at('initramfs'),
      '-append', `${KERNEL_LINE}${tscKhz()} nested.idle=${idleS * 10}`,
      '-serial', `file:${at('kernel.log')}`,
      '-drive', `if=none,id=disk,format=raw,readonly=on,file=${makeDisk(packages)}`,
      '-chardev', `socket,id=run,path=${at('run.sock')},server=on,wait=off`,
      '-chardev', `socket,id=err,path=${at('err.sock')},server=on,wait=off`,
      '-device', 'virtio-blk-pci,drive=disk', '-device', 'virtio-serial-pci',
      '-device', 'virtserialport,chardev=run,name=run', '-device', 'virtserialport,chardev=err,name=err',
    ], { detached: true, stdio: ['ignore', openSync(at('qemu.log'), 'w'), openSync(at('qemu.log'), 'a')] })
    child.on('error', () => {})
    if (child.pid === undefined) throw new Error('No nested host: install qemu-system-x86')
    writeFileSync(at('pid'), String(child.pid))
    child.unref()
    const deadline = Date.now() + STOP_MS_MAX
    while (!existsSync(at('err.sock'))) {
      if (!isAlive(child.pid) || Date.now() > deadline) {
        throw new Error(`No nested host: ${readFileSync(at('qemu.log'), 'utf8')}`)
      }
      await sleep(10)
    }
  }

  async #end(): Promise<void> {
    const pid = this.#pid()
    if (isAlive(pid)) process.kill(pid, 'SIGTERM')
    const deadline = Date.now() + STOP_MS_MAX
    while (isAlive(pid)) {
      if (Date.now() > deadline) process.kill(pid, 'SIGKILL')
      await sleep(20)
    }
    rmSync(join(this.#folder, 'pid'), { force: true })
  }

  #pid(): number {
    const path = join(this.#folder, 'pid')
    if (!existsSync(path)) return 0
    const pid = Number(readFileSync(path, 'utf8'))
    // The number may be another process's by now.
    const line = `/proc/${pid}/cmdline`
    return existsSync(line) && readFileSync(line, 'utf8').includes(this.#folder) ? pid : 0
  }

  #sent(): Map<string, string> {
    const path = join(this.#folder, 'sent.json')
    return new Map(existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) as [string, string][] : [])
  }

  #lastWords(): string {
    return existsSync(this.logPath) ? readFileSync(this.logPath, 'utf8').trim().split('\n').slice(-12).join('\n') : ''
  }
}

// q35 has an HPET and a PM timer: with the PIT alone, as microvm has it, a guest of a busy machine can't calibrate its
// TSC, and hangs. All vCPUs see the TSC of the machine itself.
const KERNEL_LINE = 'console=ttyS0 panic=-1 reboot=t quiet loglevel=4 tsc=reliable mitigations=off ' +
  'random.trust_cpu=on nokaslr'

// Its clock would run fast or slow if it measured the TSC while this machine is busy. In a virtual machine,
// /proc/cpuinfo has the TSC's frequency; on a bare one it may be another, and the kernel measures.
function tscKhz(): string {
  const text = readFileSync('/proc/cpuinfo', 'utf8')
  const megahertz = /^cpu MHz\s*: ([\d.]+)/m.exec(text)?.[1]
  const isVirtual = /^flags.*\bhypervisor\b/m.test(text)
  return isVirtual && megahertz !== undefined ? ` tsc_early_khz=${Math.round(Number(megahertz) * 1000)}` : ''
}

/** Every file below `paths`, by its path there. `mark` changes when the file does. */
function listFiles(paths: readonly (string | SentFile)[]): Map<string, { from: string; mode: number; mark: string }> {
  const found = new Map<string, { from: string; mode: number; mark: string }>()
  const add = (from: string, to: string): void => {
    const stat = statSync(from, { throwIfNoEntry: false })
    if (stat === undefined) return
    if (stat.isDirectory()) for (const name of readdirSync(from)) add(join(from, name), join(to, name))
    else if (stat.isFile()) {
      found.set(to, { from, mode: stat.mode & 0o777, mark: `${from} ${stat.size} ${stat.mtimeMs}` })
    }
  }
  for (const file of paths) {
    const { from, to } = typeof file === 'string' ? { from: file, to: resolve(file) } : file
    add(from, resolve('/', to))
  }
  return found
}

/** `text` as one word of sh. */
export function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`
}
