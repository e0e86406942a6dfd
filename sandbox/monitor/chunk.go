package monitor

// The log is a sequence of chunks: a header of HeaderSize bytes, then the bytes
// as the container wrote them in one go.
//
//	0  magic   0xA7
//	1  magic   0x1E
//	2  stream  1 stdout, 2 stderr, 3 what the monitor itself has to say
//	3  check   exclusive or of all other header bytes
//	4  length  u32, little endian, 1 to ChunkMax
//	8  time    u64, little endian, nanoseconds since 1970
//
// The header is written first, then the bytes are moved behind it. So a crash
// leaves at most one chunk that is too short, at the end, see logFile.repair; a
// reader finds the next header by magic and check.
const (
	HeaderSize = 16
	Magic0     = 0xA7
	Magic1     = 0x1E
	ChunkMax   = 1 << 20
)

// Streams of a header.
const (
	StreamOut    = 1
	StreamErr    = 2
	StreamNotice = 3
)

// PutHeader fills b[:HeaderSize].
func PutHeader(b []byte, stream byte, n int, nanos int64) {
	b[0], b[1], b[2], b[3] = Magic0, Magic1, stream, 0
	for i := range 4 {
		b[4+i] = byte(n >> (8 * i))
	}
	for i := range 8 {
		b[8+i] = byte(nanos >> (8 * i))
	}
	b[3] = check(b)
}

// Header reads a header; ok is false when b does not begin with one.
func Header(b []byte) (stream byte, n int, nanos int64, ok bool) {
	if len(b) < HeaderSize || b[0] != Magic0 || b[1] != Magic1 || b[2] < StreamOut || b[2] > StreamNotice || check(b) != b[3] {
		return 0, 0, 0, false
	}
	for i := range 4 {
		n |= int(b[4+i]) << (8 * i)
	}
	for i := range 8 {
		nanos |= int64(b[8+i]) << (8 * i)
	}
	return b[2], n, nanos, n > 0 && n <= ChunkMax
}

func check(b []byte) (x byte) {
	for i, c := range b[:HeaderSize] {
		if i != 3 {
			x ^= c
		}
	}
	return x
}
