package configs

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// decoder fills one shape from one file and gathers what is wrong.
type decoder struct {
	file     string
	problems Problems
	lines    map[string]int // key → line; "" is the document
	unread   bool           // the file is no mapping: of its keys nothing can be said
}

// field is one key of a shape.
type field struct {
	key   string
	tag   reflect.StructTag
	index int
}

// fields lists the keys of a shape in the order of the struct.
func fields(t reflect.Type) []field {
	list := make([]field, 0, t.NumField())
	for i := range t.NumField() {
		list = append(list, field{key: t.Field(i).Tag.Get("key"), tag: t.Field(i).Tag, index: i})
	}
	return list
}

func names(list []field) []string {
	all := make([]string, len(list))
	for i, f := range list {
		all[i] = f.key
	}
	return all
}

// decode reads data into shape, a pointer to a shape struct.
func decode(file string, data []byte, shape any) *decoder {
	d := &decoder{file: file, lines: map[string]int{"": 1}}
	root, err := parse(data)
	if err != nil {
		p := Problem{File: file, Message: "not valid YAML: " + err.Error()}
		if le, ok := errors.AsType[*yaml.LoadError](err); ok {
			p.Line, p.Message = le.Mark.Line, "not valid YAML: "+le.Message
		}
		d.problems, d.unread = append(d.problems, p), true
		return d
	}
	if !isNull(root) && root.Kind != yaml.MappingNode {
		d.problem("", "must be a mapping of keys to values")
		d.unread = true
		return d
	}
	d.value("", root, reflect.ValueOf(shape).Elem(), "")
	return d
}

// parse returns the root node; nil for a file without content.
func parse(data []byte) (root *yaml.Node, err error) {
	defer func() {
		// Files are edited by hand and through the API: a bug of the parser must
		// not take the agent down.
		if r := recover(); r != nil {
			err = fmt.Errorf("parser: %v", r)
		}
	}()
	var docs []yaml.Node
	if err := yaml.Load(bytes.TrimPrefix(data, []byte("\ufeff")), &docs, yaml.WithAllDocuments()); err != nil {
		return nil, err
	}
	switch {
	case len(docs) == 0 || len(docs) == 1 && len(docs[0].Content) == 0 && docs[0].Kind == yaml.DocumentNode:
		return nil, nil
	case len(docs) > 1:
		return nil, fmt.Errorf("several documents in one file, the second on line %d", docs[1].Line)
	case docs[0].Kind == yaml.DocumentNode:
		return docs[0].Content[0], nil
	default:
		return &docs[0], nil
	}
}

func isNull(n *yaml.Node) bool {
	return n == nil || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// value decodes n into v. A container without value is an empty one.
func (d *decoder) value(key string, n *yaml.Node, v reflect.Value, tag reflect.StructTag) {
	if n != nil && n.Kind == yaml.AliasNode {
		d.problem(key, "aliases (*name) are not supported, write the value out")
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(key, n, v)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(key, n, v.Elem(), tag)
	case reflect.Map:
		d.mapping(key, n, v, tag)
	case reflect.Slice:
		d.list(key, n, v, tag)
	default:
		d.scalar(key, n, v, tag)
	}
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

// structure decodes a mapping with fixed keys.
func (d *decoder) structure(key string, n *yaml.Node, v reflect.Value) {
	list := fields(v.Type())
	seen := map[string]bool{}
	d.pairs(key, n, func(name string, value *yaml.Node) {
		i := slices.IndexFunc(list, func(f field) bool { return f.key == name })
		if i < 0 {
			d.problem(join(key, name), "unknown key"+didYouMean(name, names(list)))
			return
		}
		seen[name] = true
		d.value(join(key, name), value, v.Field(list[i].index), list[i].tag)
		d.later(join(key, name), v.Field(list[i].index), list[i].tag)
	})
	for _, f := range list {
		if !seen[f.key] {
			d.absent(join(key, f.key), v.Field(f.index), f.tag)
		}
	}
}

// absent completes a key that the file does not have.
func (d *decoder) absent(key string, v reflect.Value, tag reflect.StructTag) {
	switch text := tag.Get("default"); {
	case tag.Get("required") != "":
		d.problem(key, "is missing")
	case text != "":
		if err := setScalar(v, text); err != nil {
			panic("configs: default of " + key + ": " + err.Error()) // a bug in shape.go, caught by any test
		}
	case v.Kind() == reflect.Struct:
		d.structure(key, nil, v)
	}
}

// later refuses a value for a key whose feature is not built.
func (d *decoder) later(key string, v reflect.Value, tag reflect.StructTag) {
	if tag.Get("later") != "*" {
		return
	}
	if v.Kind() == reflect.Slice && v.Len() > 0 || v.Kind() != reflect.Slice && !v.IsZero() {
		d.problem(key, "not supported yet")
	}
}

// pairs calls do for each key of a mapping. It notes the lines and refuses
// what is no mapping, no plain key, or a key given twice.
func (d *decoder) pairs(key string, n *yaml.Node, do func(name string, value *yaml.Node)) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.problem(key, "must be a mapping of keys to values")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		if name.Kind != yaml.ScalarNode || name.Value == "" {
			d.problems = append(d.problems, Problem{File: d.file, Line: name.Line, Key: key, Message: "a key must be plain text"})
			continue
		}
		full := join(key, name.Value)
		if first, ok := d.lines[full]; ok {
			d.problems = append(d.problems, Problem{File: d.file, Line: name.Line, Key: full, Message: fmt.Sprintf("given twice, first on line %d", first)})
			continue
		}
		d.lines[full] = name.Line
		do(name.Value, value)
	}
}

// mapping decodes a mapping with free keys.
func (d *decoder) mapping(key string, n *yaml.Node, v reflect.Value, tag reflect.StructTag) {
	v.Set(reflect.MakeMap(v.Type()))
	d.pairs(key, n, func(name string, value *yaml.Node) {
		full := join(key, name)
		if !regexp.MustCompile(tag.Get("keys")).MatchString(name) {
			d.problem(full, fmt.Sprintf("name %q is not allowed: %s", name, tag.Get("keyhint")))
			return
		}
		item := reflect.New(v.Type().Elem()).Elem()
		d.value(full, value, item, tag)
		v.SetMapIndex(reflect.ValueOf(name), item)
	})
	if tag.Get("required") != "" && (n == nil || len(n.Content) == 0 && n.Kind != yaml.ScalarNode || isNull(n)) {
		d.problem(key, "is empty")
	}
}

func (d *decoder) list(key string, n *yaml.Node, v reflect.Value, tag reflect.StructTag) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.problem(key, "must be a list, such as [a, b]")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		full := fmt.Sprintf("%s[%d]", key, i)
		d.lines[full] = item.Line
		d.value(full, item, v.Index(i), tag)
	}
}

func (d *decoder) scalar(key string, n *yaml.Node, v reflect.Value, tag reflect.StructTag) {
	if isNull(n) {
		d.problem(key, "has no value")
		return
	}
	if n.Kind != yaml.ScalarNode || !slices.Contains([]string{"!!str", "!!int", "!!float", "!!bool", "!!timestamp"}, n.ShortTag()) {
		d.problem(key, "must be "+kindOf(v.Type()))
		return
	}
	if err := setScalar(v, n.Value); err != nil {
		d.problem(key, fmt.Sprintf("%s, not %.80q", err, n.Value))
		return
	}
	if message := checkScalar(v, tag); message != "" {
		d.problem(key, message)
	}
}

// checkScalar applies the tags of shape.go to a value.
func checkScalar(v reflect.Value, tag reflect.StructTag) string {
	if v.Kind() == reflect.String {
		return checkWord(v.String(), tag)
	}
	for _, limit := range []struct {
		text, word string
		sign       int
	}{{tag.Get("min"), "least", -1}, {tag.Get("max"), "most", 1}} {
		if limit.text == "" {
			continue
		}
		bound := reflect.New(v.Type()).Elem()
		if err := setScalar(bound, limit.text); err != nil {
			panic("configs: limit " + limit.text + ": " + err.Error()) // a bug in shape.go, caught by any test
		}
		if compare(v, bound) == limit.sign {
			return fmt.Sprintf("must be at %s %s", limit.word, limit.text)
		}
	}
	return ""
}

func checkWord(text string, tag reflect.StructTag) string {
	if enum := tag.Get("enum"); enum != "" {
		allowed := strings.Split(enum, "|")
		if slices.Contains(allowed, text) {
			return ""
		}
		if slices.Contains(strings.Split(tag.Get("later"), "|"), text) {
			return fmt.Sprintf("%q is not supported yet; allowed: %s", text, strings.Join(allowed, ", "))
		}
		return fmt.Sprintf("unknown value %.80q", text) + didYouMean(text, allowed)
	}
	if match := tag.Get("match"); match != "" && !regexp.MustCompile(match).MatchString(text) {
		return fmt.Sprintf("%.80q is not allowed: %s", text, tag.Get("hint"))
	}
	return ""
}

func compare(a, b reflect.Value) int {
	x, y := number(a), number(b)
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

func number(v reflect.Value) float64 {
	if v.CanInt() {
		return float64(v.Int())
	}
	return v.Float()
}

// kindOf says in words what a value must be.
func kindOf(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "a duration such as 10s, 500ms or 1m30s"
	case t == reflect.TypeFor[size]():
		return "a size such as 512m or 1g"
	case t.Kind() == reflect.Int:
		return "a whole number"
	case t.Kind() == reflect.Float64:
		return "a number"
	default:
		return "text"
	}
}

// setScalar parses text as it is written in a file.
func setScalar(v reflect.Value, text string) error {
	wrong := errors.New("must be " + kindOf(v.Type()))
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		d, err := time.ParseDuration(text)
		if err != nil {
			return wrong
		}
		v.SetInt(int64(d))
	case v.Type() == reflect.TypeFor[size]():
		n, err := parseSize(text)
		if err != nil {
			return wrong
		}
		v.SetInt(int64(n))
	case v.Kind() == reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return wrong
		}
		v.SetInt(int64(n))
	case v.Kind() == reflect.Float64:
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(f) {
			return wrong
		}
		v.SetFloat(f)
	default:
		v.SetString(text)
	}
	return nil
}

// parseSize reads bytes with an optional suffix k, m, g or t, in powers of 1024
// as Docker's --memory has them.
func parseSize(text string) (size, error) {
	digits := strings.TrimRight(strings.ToLower(text), "bikmgt")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0, err
	}
	unit := strings.ToLower(text[len(digits):])
	if len(unit) > 1 { // "mb" and "mib" are "m"
		unit = unit[:1] + strings.TrimPrefix(strings.TrimPrefix(unit[1:], "i"), "b")
	}
	shift, ok := map[string]int{"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[unit]
	if !ok || n < 0 || n > math.MaxInt64>>shift {
		return 0, strconv.ErrRange
	}
	return size(n << shift), nil
}
