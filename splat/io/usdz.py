"""Meshes written as USDZ, which phones and tablets of Apple show in the room (AR Quick Look). Needs the package usd-core."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from splat.errors import BackendUnavailable, StoppedLate
from splat.io.atomic import atomically
from splat.io.glb import linear_from_srgb
from splat.io.texture_file import SUFFIXES, TextureFormat, encoded
from splat.mesh import Mesh


def save_usdz(mesh: Mesh, path: Path, texture_format: TextureFormat = "png") -> None:
    """Write `mesh` (+Y up, metres) with its texture, or its vertex colours (linear light, as USD has it), or neither.

    Raises `BackendUnavailable` without usd-core.
    """
    try:
        from pxr import UsdUtils
    except ImportError as error:
        raise BackendUnavailable(".usdz needs the package usd-core; run: pip install 'splatsmith[usd]'") from error
    with atomically(path) as temporary, tempfile.TemporaryDirectory() as folder:
        scene = _write_scene(mesh, Path(folder), texture_format)
        if not UsdUtils.CreateNewUsdzPackage(str(scene), str(temporary), "mesh.usdc"):
            raise StoppedLate(f"Could not write {path}; free some space or choose another folder.")


def _write_scene(mesh: Mesh, folder: Path, texture_format: TextureFormat) -> Path:
    from pxr import Sdf, Usd, UsdGeom, UsdShade, Vt

    path = folder / "mesh.usdc"
    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    root = UsdGeom.Xform.Define(stage, "/Root")
    stage.SetDefaultPrim(root.GetPrim())
    surface = UsdGeom.Mesh.Define(stage, "/Root/Mesh")
    vertices = np.ascontiguousarray(mesh.vertices.detach().cpu().float().numpy())
    faces = mesh.faces.cpu().numpy().astype(np.int32)
    surface.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(vertices))
    surface.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(faces), 3, np.int32)))
    surface.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(faces.reshape(-1)))
    surface.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)  # triangles as they are: the default would round them off
    surface.CreateOrientationAttr(UsdGeom.Tokens.rightHanded)
    surface.CreateDoubleSidedAttr(True)
    surface.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(np.stack([vertices.min(0), vertices.max(0)])))
    material = UsdShade.Material.Define(stage, "/Root/Material")
    shader = UsdShade.Shader.Define(stage, "/Root/Material/Surface")
    shader.CreateIdAttr("UsdPreviewSurface")
    shader.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(1.0)
    shader.CreateInput("metallic", Sdf.ValueTypeNames.Float).Set(0.0)
    colour = shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
    variables = UsdGeom.PrimvarsAPI(surface)
    reader = UsdShade.Shader.Define(stage, "/Root/Material/Reader")
    if mesh.uvs is not None and mesh.texture is not None:
        picture = f"texture{SUFFIXES[texture_format]}"
        (folder / picture).write_bytes(encoded(mesh.texture, texture_format))
        uvs = np.ascontiguousarray(mesh.uvs.detach().cpu().float().numpy().reshape(-1, 2))
        st = variables.CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying)
        st.Set(Vt.Vec2fArray.FromNumpy(uvs))
        reader.CreateIdAttr("UsdPrimvarReader_float2")
        reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
        texture = UsdShade.Shader.Define(stage, "/Root/Material/Texture")
        texture.CreateIdAttr("UsdUVTexture")
        texture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(f"./{picture}")
        texture.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set("sRGB")
        for wrap in ("wrapS", "wrapT"):
            texture.CreateInput(wrap, Sdf.ValueTypeNames.Token).Set("clamp")
        texture.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(
            reader.CreateOutput("result", Sdf.ValueTypeNames.Float2)
        )
        colour.ConnectToSource(texture.CreateOutput("rgb", Sdf.ValueTypeNames.Float3))
    elif mesh.colors is not None:
        light = linear_from_srgb(mesh.colors.detach().cpu().double().numpy()).astype(np.float32)
        shown = variables.CreatePrimvar("displayColor", Sdf.ValueTypeNames.Color3fArray, UsdGeom.Tokens.vertex)
        shown.Set(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(light)))
        reader.CreateIdAttr("UsdPrimvarReader_float3")
        reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("displayColor")
        colour.ConnectToSource(reader.CreateOutput("result", Sdf.ValueTypeNames.Float3))
    material.CreateSurfaceOutput().ConnectToSource(shader.CreateOutput("surface", Sdf.ValueTypeNames.Token))
    UsdShade.MaterialBindingAPI.Apply(surface.GetPrim()).Bind(material)
    stage.GetRootLayer().Save()
    return path
