"""What a fit aims at: a mesh, a point cloud, a sampled volume or a field, behind one small interface."""

from diffmatch.meshing.targets.field import FieldTarget as FieldTarget
from diffmatch.meshing.targets.load import load_target as load_target
from diffmatch.meshing.targets.mesh import ClosestPoint as ClosestPoint
from diffmatch.meshing.targets.mesh import MeshTarget as MeshTarget
from diffmatch.meshing.targets.normalization import Normalization as Normalization
from diffmatch.meshing.targets.points import PointTarget as PointTarget
from diffmatch.meshing.targets.target import Attributed as Attributed
from diffmatch.meshing.targets.target import Target as Target
from diffmatch.meshing.targets.volume import VolumeTarget as VolumeTarget
