// Answers questions about a package.json: node package.cjs FOLDER QUESTION [NAME]. Ends with 1 for "no". The question
// `all` is answered with a line for each question whose answer is not "no": QUESTION [NAME], a tab, the answer.
const { readFileSync, existsSync } = require('node:fs')
const { join } = require('node:path')
const [folder, question, name] = process.argv.slice(2)

let json
try {
  json = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8').replace(/^\uFEFF/, ''))
  if (typeof json !== 'object' || json === null || Array.isArray(json)) throw new Error('it is not an object')
} catch (error) {
  console.log(`package.json can't be read: ${error.message}`)
  process.exit(2)
}

const scripts = Object(json.scripts)
const has = (key) => Object.keys(Object(json[key])).length > 0
const answers = {
  valid: () => true,
  'has-dependencies': () =>
    ['dependencies', 'devDependencies', 'optionalDependencies', 'workspaces'].some(has) || existsSync(join(folder, 'pnpm-workspace.yaml')),
  'has-dev-dependencies': () =>
    ['devDependencies', 'workspaces'].some(has) || existsSync(join(folder, 'pnpm-workspace.yaml')),
  script: (name) => typeof scripts[name] === 'string' && scripts[name].trim() !== '',
  // What `npm init` writes is not a test.
  test: () => typeof scripts.test === 'string' && scripts.test.trim() !== '' && !scripts.test.includes('no test specified'),
  engine: (name) => typeof Object(json.engines)[name] === 'string' && Object(json.engines)[name],
  manager: () => typeof json.packageManager === 'string' && json.packageManager,
  // The major version that engines.node asks for, where that is plain to see: 20, 20.x, ^20.1, ~20, 20.11.0.
  major: () => /^[\^~v=]*(\d+)(\.|$)/.exec(String(Object(json.engines).node ?? '').trim())?.[1],
}
if (question === 'all') {
  const asked = [['has-dependencies'], ['has-dev-dependencies'], ['engine', 'node'], ['manager'], ['major'], ...Object.keys(scripts).map((key) => ['script', key])]
  for (const [one, about] of asked) {
    const answer = answers[one](about)
    const words = [one, about].filter((word) => word !== undefined).join(' ')
    if (answer) console.log(`${words}\t${answer === true ? '' : answer}`.replace(/[\r\n]/g, ' '))
  }
  process.exit(0)
}
const answer = answers[question](name)
if (!answer) process.exit(1)
if (answer !== true) console.log(answer)
