// Serves a folder of files on $PORT: content types, index.html, 404.html, and what static.json says.
//
// static.json, all keys optional: "root" (the folder to serve), "clean_urls" (/about serves about.html), "routes"
// ({"/**": "index.html"}: what to serve where there is no file), "error_page", "redirects" ({"/old": {"url": "/new",
// "status": 301}}), "headers" ({"/**": {"Name": "value"}}).
//
// Files are told apart by their content (ETag), never by their times: a slug's files may all have the same.

import { createHash } from 'node:crypto'
import { createReadStream, existsSync, readFileSync, realpathSync, statSync } from 'node:fs'
import { createServer } from 'node:http'
import path from 'node:path'
import { pipeline } from 'node:stream'
import { fileURLToPath } from 'node:url'

const TYPES = {
  html: 'text/html; charset=utf-8', htm: 'text/html; charset=utf-8', css: 'text/css; charset=utf-8',
  js: 'text/javascript; charset=utf-8', mjs: 'text/javascript; charset=utf-8',
  json: 'application/json; charset=utf-8', map: 'application/json; charset=utf-8',
  webmanifest: 'application/manifest+json; charset=utf-8', xml: 'application/xml; charset=utf-8',
  txt: 'text/plain; charset=utf-8', md: 'text/markdown; charset=utf-8', csv: 'text/csv; charset=utf-8',
  svg: 'image/svg+xml', png: 'image/png', jpg: 'image/jpeg', jpeg: 'image/jpeg', gif: 'image/gif',
  webp: 'image/webp', avif: 'image/avif', ico: 'image/x-icon', bmp: 'image/bmp', pdf: 'application/pdf',
  woff: 'font/woff', woff2: 'font/woff2', ttf: 'font/ttf', otf: 'font/otf', wasm: 'application/wasm',
  mp4: 'video/mp4', webm: 'video/webm', ogv: 'video/ogg', mp3: 'audio/mpeg', ogg: 'audio/ogg',
  wav: 'audio/wav', zip: 'application/zip', gz: 'application/gzip',
}
// In the root of a repository these say how it is deployed; they are no part of the site.
const NOT_SERVED = new Set(['static.json', 'app.json', 'Procfile'])

// `*` is a part of one name, `**` any number of them.
const pattern = (glob) => new RegExp('^' + glob.split(/(\*\*|\*)/).map((part) =>
  part === '**' ? '[^]*' : part === '*' ? '[^/]*' : part.replace(/[.+?^${}()|[\]\\/]/g, '\\$&')).join('') + '$')

const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value)
const stat = (name) => { try { return statSync(name) } catch { return undefined } }
const isFile = (name) => stat(name)?.isFile() ?? false
const isFolder = (name) => stat(name)?.isDirectory() ?? false

function table (settings, key, holds) {
  const found = settings[key] ?? {}
  if (!isObject(found) || !Object.values(found).every(holds)) throw new Error(`"${key}" has a wrong shape`)
  return Object.entries(found)
}

function readSite (folder) {
  const file = path.join(folder, 'static.json')
  const settings = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {}
  if (!isObject(settings)) throw new Error('it is not an object')
  let root = settings.root
  if (root === undefined) {
    // Heroku's own default, then what a repository most often has.
    root = ['public_html', 'public'].find((name) => isFolder(path.join(folder, name))) ?? '.'
    if (root === 'public' && !isFile(path.join(folder, 'public', 'index.html'))) {
      root = isFile(path.join(folder, 'index.html')) ? '.' : 'public'
    }
  }
  if (typeof root !== 'string') throw new Error('"root" is not a text')
  const base = realpathSync(folder)
  const joined = path.join(folder, root)
  if (!isFolder(joined)) throw new Error(`"root" is ${root}, which is not a folder`)
  const real = realpathSync(joined)
  if (real !== base && !real.startsWith(base + path.sep)) throw new Error('"root" lies outside of the app')
  const redirects = table(settings, 'redirects', isObject).map(([glob, { url, status = 301 }]) => {
    if (typeof url !== 'string' || /[\x00-\x20\x7f]/.test(url) || ![301, 302, 303, 307, 308].includes(status)) {
      throw new Error(`"redirects" has no usable url and status for ${glob}`)
    }
    return { glob: pattern(glob), url, status }
  })
  const headers = table(settings, 'headers', isObject).flatMap(([glob, rules]) =>
    Object.entries(rules).map(([name, value]) => {
      if (typeof value !== 'string' || !/^[A-Za-z0-9-]+$/.test(name) || /[\x00-\x1f\x7f]/.test(value)) {
        throw new Error(`"headers" has an unusable header for ${glob}`)
      }
      return { glob: pattern(glob), name, value }
    }))
  const routes = table(settings, 'routes', (page) => typeof page === 'string')
    .map(([glob, page]) => ({ glob: pattern(glob), page }))
  return { folder: base, root: real, cleanUrls: settings.clean_urls === true, errorPage: settings.error_page, routes, redirects, headers }
}

// The file at a path of the site: inside the root, also after all links were followed.
function find (site, wanted) {
  const names = wanted.split('/').filter((name) => name !== '' && name !== '.')
  if (wanted.includes('\0') || names.some((name) => name.startsWith('.') && name !== '.well-known')) return undefined
  if (site.root === site.folder && names.length === 1 && NOT_SERVED.has(names[0])) return undefined
  try {
    const found = realpathSync(path.join(site.root, ...names))
    return found === site.root || found.startsWith(site.root + path.sep) ? found : undefined
  } catch {
    return undefined
  }
}

const tags = new Map()
async function tagOf (name) {
  const { ino, size, mtimeMs } = statSync(name)
  const key = `${ino} ${size} ${mtimeMs} ${name}`
  if (!tags.has(key)) {
    const hash = createHash('sha256')
    for await (const chunk of createReadStream(name)) hash.update(chunk)
    if (tags.size > 10_000) tags.clear()
    tags.set(key, `"${hash.digest('hex').slice(0, 32)}"`)
  }
  return { tag: tags.get(key), size }
}

// One range of bytes, `null` when it can't be had, `undefined` when none was asked for.
function range (asked, size) {
  const match = /^bytes=(\d{0,15})-(\d{0,15})$/.exec((asked ?? '').trim())
  if (!match || (match[1] === '' && match[2] === '')) return undefined
  const start = match[1] === '' ? size - Math.min(Number(match[2]), size) : Number(match[1])
  const end = match[1] === '' ? size : Math.min(match[2] === '' ? size : Number(match[2]) + 1, size)
  return start < end ? { start, end } : null
}

function text (response, status, body, headers = {}) {
  response.writeHead(status, { 'Content-Type': 'text/plain; charset=utf-8', 'Content-Length': Buffer.byteLength(body), ...headers })
  response.end(body)
}

async function sendFile (site, request, response, status, name, asked) {
  const { tag, size } = await tagOf(name)
  const headers = {
    'Content-Type': TYPES[name.split('.').pop().toLowerCase()] ?? 'application/octet-stream',
    'Cache-Control': 'no-cache',
    'X-Content-Type-Options': 'nosniff',
  }
  for (const { glob, name: key, value } of site.headers) if (glob.test(asked)) headers[key] = value
  let [start, end] = [0, size]
  if (status === 200) {
    headers.ETag = tag
    headers['Accept-Ranges'] = 'bytes'
    const known = (request.headers['if-none-match'] ?? '').split(',').map((item) => item.trim().replace(/^W\//, ''))
    if (known.includes(tag) || known.includes('*')) {
      response.writeHead(304, headers)
      return response.end()
    }
    const part = range(request.headers.range, size)
    if (part !== undefined && (request.headers['if-range'] ?? tag) === tag) {
      if (part === null) return text(response, 416, '', { 'Content-Range': `bytes */${size}` })
      ;({ start, end } = part)
      status = 206
      headers['Content-Range'] = `bytes ${start}-${end - 1}/${size}`
    }
  }
  response.writeHead(status, { ...headers, 'Content-Length': end - start })
  if (request.method === 'HEAD' || start === end) return response.end()
  // A client that goes away is no error of ours.
  pipeline(createReadStream(name, { start, end: end - 1 }), response, () => {})
}

async function answer (site, request, response) {
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    return text(response, 405, 'method not allowed\n', { Allow: 'GET, HEAD', Connection: 'close' })
  }
  // Only the path counts, and two slashes at its start would make a redirect name another host.
  const [target, ...query] = request.url.split('?')
  const raw = '/' + target.split('#')[0].replace(/^\/+/, '')
  let asked
  try { asked = decodeURIComponent(raw) } catch { return text(response, 400, 'bad request\n') }
  const redirect = site.redirects.find(({ glob }) => glob.test(asked))
  if (redirect) return text(response, redirect.status, '', { Location: redirect.url })
  let found = find(site, asked)
  if (found && isFolder(found)) {
    if (isFile(path.join(found, 'index.html'))) {
      if (!raw.endsWith('/')) {
        return text(response, 301, '', { Location: raw + '/' + (query.length ? '?' + query.join('?') : '') })
      }
      found = find(site, asked + '/index.html')
    } else found = undefined
  } else if (found && asked.endsWith('/')) {
    found = undefined
  } else if (!found && site.cleanUrls && !asked.endsWith('/')) {
    found = find(site, asked + '.html')
  }
  if (found && isFile(found)) return sendFile(site, request, response, 200, found, asked)
  for (const { glob, page } of site.routes) {
    const file = glob.test(asked) ? find(site, page) : undefined
    if (file && isFile(file)) return sendFile(site, request, response, 200, file, asked)
  }
  for (const page of [site.errorPage, '404.html']) {
    const file = typeof page === 'string' ? find(site, page) : undefined
    if (file && isFile(file)) return sendFile(site, request, response, 404, file, asked)
  }
  return text(response, 404, 'not found\n')
}

const check = process.argv[2] === '--check'
const folder = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
let site
try {
  site = readSite(check ? process.argv[3] : folder)
} catch (error) {
  console.error(error.message)
  process.exit(1)
}
const shown = path.relative(site.folder, site.root) || '.'
if (check) {
  console.log('Serving ./' + (shown === '.' ? '.' : shown))
} else {
  const server = createServer((request, response) => {
    answer(site, request, response).catch((error) => {
      console.error(error)
      if (!response.headersSent) text(response, 500, 'error\n')
      else response.destroy()
    })
  })
  server.listen(Number(process.env.PORT ?? 5000), '0.0.0.0', () => console.log(`Serving ${shown} on port ${server.address().port}`))
  const stop = () => {
    // Requests in flight are answered, idle connections are closed.
    server.close(() => process.exit(0))
    server.closeIdleConnections()
    setTimeout(() => process.exit(0), 25_000).unref()
  }
  process.on('SIGTERM', stop)
  process.on('SIGINT', stop)
}
