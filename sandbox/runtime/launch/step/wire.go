package step

// Encoder writes integers and byte strings, little endian, lengths first.
type Encoder struct{ Buf []byte }

// U32 appends v.
func (e *Encoder) U32(v uint32) {
	e.Buf = append(e.Buf, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
}

// U64 appends v.
func (e *Encoder) U64(v uint64) { e.U32(uint32(v)); e.U32(uint32(v >> 32)) }

// Bytes appends b with its length.
func (e *Encoder) Bytes(b []byte) { e.U32(uint32(len(b))); e.Buf = append(e.Buf, b...) }

// String appends s with its length.
func (e *Encoder) String(s string) { e.U32(uint32(len(s))); e.Buf = append(e.Buf, s...) }

// Decoder reads what Encoder wrote. A short or wrong input sets Bad and gives zeros.
type Decoder struct {
	Buf []byte
	Bad bool
}

func (d *Decoder) take(n int) []byte {
	if n < 0 || n > len(d.Buf) {
		d.Bad, d.Buf = true, nil
		return nil
	}
	b := d.Buf[:n:n]
	d.Buf = d.Buf[n:]
	return b
}

// U32 reads four bytes.
func (d *Decoder) U32() uint32 {
	b := d.take(4)
	if b == nil {
		return 0
	}
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// U64 reads eight bytes.
func (d *Decoder) U64() uint64 { lo := d.U32(); return uint64(lo) | uint64(d.U32())<<32 }

// Bytes reads a byte string; it shares the buffer.
func (d *Decoder) Bytes() []byte { return d.take(int(d.U32())) }

// String reads a string.
func (d *Decoder) String() string { return string(d.Bytes()) }

// count reads a length of things that take at least one byte each.
func (d *Decoder) count() int {
	n := int(d.U32())
	if n > len(d.Buf) {
		d.Bad = true
		return 0
	}
	return n
}

// Encode appends the program. Everything that a pointer will point to is laid out
// as the kernel wants it, so that Compile need not copy.
func (p Program) Encode(e *Encoder) {
	jumps := 0
	for _, s := range p {
		jumps += len(s.Jumps)
	}
	e.U32(uint32(len(p)))
	e.U32(uint32(jumps))
	for _, s := range p {
		e.String(s.Name)
		e.U32(s.NR)
		e.U32(uint32(uint16(s.Out)) | uint32(s.Skip)<<16)
		e.U32(uint32(s.Check))
		e.U32(uint32(len(s.Args)))
		for _, a := range s.Args {
			a.encode(e)
		}
		e.U32(uint32(len(s.Jumps)))
		for _, j := range s.Jumps {
			e.U32(uint32(j.On))
			e.U32(uint32(j.Skip))
		}
	}
}

func (a Arg) encode(e *Encoder) {
	e.U32(uint32(a.Kind))
	switch a.Kind {
	case Bytes, Filter:
		e.Bytes(a.Data)
	case Strings:
		e.U32(uint32(len(a.Strings)))
		for _, s := range a.Strings {
			e.U32(uint32(len(s) + 1))
			e.Buf = append(append(e.Buf, s...), 0)
		}
	default:
		e.U64(a.Val)
	}
}

// Code is an encoded program: what Encode wrote, up to the end of the record.
type Code []byte

// Name is the name of a step, "unknown step" for an index that is none.
func (c Code) Name(index int) string {
	d := Decoder{Buf: c}
	n := d.count()
	d.U32()
	for i := range n {
		name := d.Bytes()
		if i == index && !d.Bad {
			return string(name)
		}
		d.skipStep()
	}
	return "unknown step"
}

// skipStep passes over a step whose name has been read.
func (d *Decoder) skipStep() {
	d.take(12)
	for range d.count() {
		switch Kind(d.U32()) {
		case Bytes, Filter:
			d.Bytes()
		case Strings:
			for range d.count() {
				d.Bytes()
			}
		default:
			d.take(8)
		}
	}
	d.take(8 * d.count())
}
