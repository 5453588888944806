// Makes the test layer: node layer.cjs CODE LAYER FOLDER…. Each FOLDER below LAYER is as the one below CODE was before the
// pruning; only what CODE no longer has is left in it. Test nodes see the layer below the slug, so this is all they need.
//
// Ends with 1, and has changed nothing, where the pruning did more than to take away: then the two together would be
// neither what was built nor what is deployed.
const { lstatSync, readdirSync, readlinkSync, readFileSync, rmSync, rmdirSync, unlinkSync } = require('node:fs')
const { join, sep } = require('node:path')
const [code, layer, ...folders] = process.argv.slice(2)

const look = (path) => lstatSync(path, { throwIfNoEntry: false })
// What package managers write down for themselves, such as .package-lock.json, .yarn-integrity and .pnpm/lock.yaml.
const isNote = (path) => {
  const names = path.split(sep)
  const depth = names.length - names.lastIndexOf('node_modules') - 1
  return depth === 1 ? names.at(-1).startsWith('.') : depth === 2 && names.at(-2) === '.pnpm' && names.at(-1).endsWith('.yaml')
}
const isSame = (one, other, before, after) => {
  if (before.ino === after.ino && before.dev === after.dev) return true
  if (before.isSymbolicLink() && after.isSymbolicLink()) return readlinkSync(one) === readlinkSync(other)
  return before.isFile() && after.isFile() && before.size === after.size && readFileSync(one).equals(readFileSync(other))
}

const spare = []
function compare(folder) {
  const [was, is] = [join(layer, folder), join(code, folder)]
  const names = new Set(readdirSync(was))
  for (const name of readdirSync(is)) {
    const path = join(folder, name)
    if (!names.has(name) && !isNote(path)) throw new Error(`the pruning added ${path}`)
  }
  for (const name of names) {
    const path = join(folder, name)
    const [one, other] = [join(was, name), join(is, name)]
    const [before, after] = [look(one), look(other)]
    if (!after) continue
    if (before.isDirectory() && after.isDirectory()) compare(path)
    else if (isSame(one, other, before, after) || isNote(path)) spare.push(one)
    else throw new Error(`the pruning changed ${path}`)
  }
}
function dropEmpty(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) if (entry.isDirectory()) dropEmpty(join(folder, entry.name))
  if (readdirSync(folder).length === 0) rmdirSync(folder)
}

try {
  for (const folder of folders) if (look(join(code, folder))) compare(folder)
} catch (error) {
  console.log(error.message)
  process.exit(1)
}
for (const path of spare) unlinkSync(path)
dropEmpty(layer)
