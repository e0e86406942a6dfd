// Package fetch gets files by http and https for the builder's ADD.
//
// The build names the URL, and this process, which asks for it, stands in places
// that the build must not reach: beside the host's own services, the metadata
// service of a cloud, the bridges of other apps. So every address is looked at
// when it is dialled, after name resolution and at every redirect (Guard); a
// name that changes its answer between a check and the use of it gains nothing.
//
// One request: Get looks into its directory for what the URL gave last time. If
// the caller pins a digest and it is that, nothing is asked. Otherwise the server
// is asked whether it has something else (ETag, Last-Modified). A new file is
// streamed into the directory, hashed and bounded on the way, and gets its name
// when it is whole. A kept file is hashed again before it is handed out: a
// damaged one is fetched anew. Files stay locked until their user is done, and
// the oldest go when there are too many.
package fetch
