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

// Encode appends the program.
func (p Program) Encode(e *Encoder) {
	e.U32(uint32(len(p)))
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
			e.String(s)
		}
	default:
		e.U64(a.Val)
	}
}

// DecodeProgram reads a program; d.Bad says whether it is whole.
func DecodeProgram(d *Decoder) Program {
	p := make(Program, 0, d.count())
	for range cap(p) {
		s := Step{Name: d.String(), NR: d.U32()}
		out := d.U32()
		s.Out, s.Skip, s.Check = int16(out), uint16(out>>16), Check(d.U32())
		s.Args = make([]Arg, 0, min(d.count(), 6))
		for range cap(s.Args) {
			s.Args = append(s.Args, decodeArg(d))
		}
		s.Jumps = make([]Jump, 0, d.count())
		for range cap(s.Jumps) {
			s.Jumps = append(s.Jumps, Jump{On: int32(d.U32()), Skip: uint16(d.U32())})
		}
		p = append(p, s)
	}
	return p
}

func decodeArg(d *Decoder) Arg {
	a := Arg{Kind: Kind(d.U32())}
	switch a.Kind {
	case Bytes, Filter:
		a.Data = d.Bytes()
	case Strings:
		a.Strings = make([]string, 0, d.count())
		for range cap(a.Strings) {
			a.Strings = append(a.Strings, d.String())
		}
	default:
		a.Val = d.U64()
	}
	return a
}
