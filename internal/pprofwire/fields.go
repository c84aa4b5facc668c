package pprofwire

import "google.golang.org/protobuf/encoding/protowire"

// Number is the number of a field.
type Number = protowire.Number

// Field numbers of profile.proto, by message.
const (
	ProfileSampleType    Number = 1
	ProfileSample        Number = 2
	ProfileMapping       Number = 3
	ProfileLocation      Number = 4
	ProfileFunction      Number = 5
	ProfileString        Number = 6
	ProfileDropFrames    Number = 7
	ProfileKeepFrames    Number = 8
	ProfileTime          Number = 9
	ProfileDuration      Number = 10
	ProfilePeriodType    Number = 11
	ProfilePeriod        Number = 12
	ProfileComment       Number = 13
	ProfileDefaultSample Number = 14
	ProfileDocURL        Number = 15

	ValueTypeType Number = 1
	ValueTypeUnit Number = 2

	SampleLocation Number = 1
	SampleValue    Number = 2
	SampleLabel    Number = 3

	LabelKey    Number = 1
	LabelString Number = 2
	LabelNumber Number = 3
	LabelUnit   Number = 4

	MappingID      Number = 1
	MappingStart   Number = 2
	MappingLimit   Number = 3
	MappingOffset  Number = 4
	MappingFile    Number = 5
	MappingBuildID Number = 6
	MappingFlags   Number = 7 // the first of four: has functions, file names, line numbers, inline frames

	LocationID      Number = 1
	LocationMapping Number = 2
	LocationAddress Number = 3
	LocationLine    Number = 4
	LocationFolded  Number = 5

	LineFunction Number = 1
	LineLine     Number = 2
	LineColumn   Number = 3

	FunctionID     Number = 1
	FunctionName   Number = 2
	FunctionSystem Number = 3
	FunctionFile   Number = 4
	FunctionStart  Number = 5
)
