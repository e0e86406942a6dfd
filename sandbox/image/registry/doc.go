// Package registry speaks the OCI distribution protocol (distribution-spec
// 1.1) to the registry of one repository, and to the mirrors of it.
//
// Open asks nobody yet. The life of one request: Manifest and Blob go to each
// endpoint in turn, the mirrors first, the origin last; an endpoint is
// connected when it is first needed, which pings it and fetches a token with
// the credentials of Docker's files and helpers. Below the token sits one
// transport for each host, with its certificates, which refuses plain HTTP
// where nobody allowed it and repeats what failed for a passing reason (429,
// 5xx, a cut connection) after the time that the server asked for. Documents
// are checked against the digest they were asked for by, whoever sent them;
// blobs are streamed, so their reader checks them, and tells by Distrust that
// an endpoint lied.
//
// Pushes go to the origin alone.
package registry
